"""Which form of tool calls the gateway finds in public chat templates: `make tool-formats-check`.

The templates are those of check_templates, or those of folders that are named. Per template: the form that was found,
and for one that writes calls which no parser reads, how they look.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from inferd_gateway.templates.renderer import ChatTemplate, Renderer
from inferd_gateway.tool_detection import ONE, NotWritten, detect_tool_format, write_calls

from tools.check_templates import download, public_templates

CONTROL_TOKEN = re.compile(r"<[|｜][^|｜<>\s]{1,40}[|｜]>")  # as most of them look


def main(folders: list[str]) -> int:
    return asyncio.run(check(public_templates([Path(folder) for folder in folders] or download())))


async def check(sources: dict[str, str]) -> int:
    renderer = Renderer(workers=1, timeout_s=10.0)
    for place, source in sources.items():
        special = tuple(sorted({"<s>", "</s>", *CONTROL_TOKEN.findall(source)}))
        template = ChatTemplate(source, special, "auto", (("bos_token", "<s>"), ("eos_token", "</s>")))
        name = await detect_tool_format(renderer, template)
        print(f"{place:70}{name or 'unknown: ' + await looks(renderer, template)}")
    await renderer.close()
    return 0 if sources else 1


async def looks(renderer: Renderer, template: ChatTemplate) -> str:
    try:
        return repr(await write_calls(renderer, template, ONE))[:240]
    except NotWritten as error:
        return f"no calls ({str(error.__cause__)[:100]})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
