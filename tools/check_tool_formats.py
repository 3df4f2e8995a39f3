"""Which form of tool calls the gateway finds in public chat templates: `make tool-formats-check`.

The templates are those of llama.cpp, from the source distribution of llama-cpp-python, or those of folders that are
named. Per template: the form that was found, and for one that writes calls which no parser reads, how they look.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from inferd_gateway.templates.renderer import ChatTemplate, Renderer
from inferd_gateway.tool_detection import ONE, NotWritten, detect_tool_format, write_calls

PACKAGE = "llama-cpp-python"
CONTROL_TOKEN = re.compile(r"<[|｜][^|｜<>\s]{1,40}[|｜]>")  # as most of them look
FOLDER = "vendor/llama.cpp/models/templates/"


def main(folders: list[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        paths = sorted(path for folder in folders or [fetched(Path(scratch))] for path in Path(folder).glob("*.jinja"))
        return asyncio.run(check(paths))


def fetched(scratch: Path) -> str:
    """A folder with the templates of llama.cpp."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", PACKAGE]
    subprocess.run([*command, "-d", str(scratch)], check=True)
    with tarfile.open(next(scratch.glob("*.tar.gz"))) as archive:
        members = [member for member in archive.getmembers() if FOLDER in member.name and member.isfile()]
        archive.extractall(scratch, members, filter="data")
    return str(next(scratch.glob(f"*/{FOLDER}")))


async def check(paths: list[Path]) -> int:
    renderer = Renderer(workers=1, timeout_s=10.0)
    for path in paths:
        source = path.read_text(encoding="utf-8")
        special = tuple(sorted({"<s>", "</s>", *CONTROL_TOKEN.findall(source)}))
        template = ChatTemplate(source, special, "auto", (("bos_token", "<s>"), ("eos_token", "</s>")))
        name = await detect_tool_format(renderer, template)
        print(f"{path.name:58}{name or 'unknown: ' + await looks(renderer, template)}")
    await renderer.close()
    return 0 if paths else 1


async def looks(renderer: Renderer, template: ChatTemplate) -> str:
    for as_text in (False, True):
        try:
            return repr(await write_calls(renderer, template, ONE, as_text=as_text))[:240]
        except NotWritten as error:
            reason = str(error.__cause__)[:100]
    return f"no calls ({reason})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
