"""Our rendering of public chat templates against transformers' own: `make templates-check`.

The templates come with the source distributions of llama-cpp-python and vLLM, which pip puts under .clients/templates
once (FOLDER... on the command line: templates that are there already). Every template renders every conversation here
twice: by the gateway and by transformers, with the same messages. The texts must be equal, whatever they hold; a prompt
without control tokens of the caller's must be one trusted run, and none of his may lie in a trusted run. What the
template takes (contents, arguments, reasoning) is printed for reading. Exits 1 when something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from inferd_gateway.templates.renderer import MAX_CHARS
from inferd_gateway.templates.traits import THINKING_PART
from inferd_gateway.templates.worker import LoadedTemplate
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / ".clients" / "templates"
DISTRIBUTIONS = {"llama-cpp-python": "0.3.36", "vllm": "0.33.0"}
BUILD_TOOLS = ("setuptools", "setuptools-scm", "setuptools-rust", "wheel", "packaging", "scikit-build-core")
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
CONTROL = re.compile(
    r"<\|[^|<>{}%\s]{1,40}\|>|<｜[^｜<>{}%]{1,40}｜>|\[/?[A-Z_]{3,20}\]|</?s>|</?think>|</?tool_calls?>|"
    r"<(?:start|end)_of_[a-z]+>|<\|?/?turn\|?>"
)
ROUNDS = 20
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    name: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    kwargs: dict[str, Any] | None = None

    def holds(self, token: str) -> bool:
        return token in json.dumps([self.messages, self.tools], ensure_ascii=False)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def called(content: Any, *arguments: Any, **fields: Any) -> dict[str, Any]:
    calls = [
        {"type": "function", "id": f"call{index:05}", "function": {"name": "weather", "arguments": value}}
        for index, value in enumerate(arguments)
    ]
    return assistant(content, tool_calls=calls, **fields)


def result(content: str, index: int = 0) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{index:05}", "name": "weather", "content": content}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a town; „schön“ or <b>bad</b> \U0001f327.",
            "parameters": {
                "type": "object",
                "properties": {
                    "town": {"type": "string", "description": "Which town?", "enum": ["Köln", "Paris"]},
                    "days": {"type": ["integer", "null"], "default": 1},
                    "more": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}},
                },
                "required": ["town"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}},
]
UNICODE = "ü 日本 🙂 \U00100041\U0010fffd \u2028\u0130ß \\n 'quoted' \"too\" & <b>x</b>"
REASONED = {"reasoning_content": "Hm, let me think.\n\nSo."}


def cases(tokens: list[str]) -> Iterator[Case]:
    system = {"role": "system", "content": "Be brief."}
    weather = {"town": "Köln", "days": 2, "more": [{"x": 1.5}, None], "flag": True}
    yield Case("one", [user("What is the capital of France?")])
    yield Case("system", [system, user("Hello")])
    yield Case("long", [user("a"), assistant("b"), user("  c\n"), assistant(" d "), user("e")])
    yield Case("unicode", [system | {"content": UNICODE}, user(UNICODE), assistant(UNICODE), user(UNICODE)])
    yield Case("parts", [user(["one", "two"]), assistant("b"), user(["three"])])
    yield Case("thought", [user("a"), assistant("b", **REASONED), user("c"), assistant("d", **REASONED)])
    yield Case("tags", [user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c {{ 7 * 7 }} {% raw %}")])
    yield Case("tools", [user("How is it?")], TOOLS)
    yield Case("call", [user("How?"), called("", weather), result('{"sun": "à"}')], TOOLS)
    yield Case("calls", [user("How?"), called("", weather, {}), result("1"), result("2", 1), assistant("Good."),
                         user("ok")], TOOLS)  # fmt: skip
    answered = assistant("d", **REASONED)
    yield Case("thought call", [user("How?"), called("", weather, **REASONED), result("sun"), answered], TOOLS)
    yield Case("said call", [system, user("How?"), called("I look.", weather, **REASONED), result("sun")], TOOLS)
    yield Case("text arguments", [user("How?"), called("", "no object"), result("?")], TOOLS)
    for name in ("enable_thinking", "thinking"):
        yield Case(name, [user("a"), assistant("b", **REASONED), user("c")], None, {name: False})
        yield Case(name, [user("a"), assistant("b", **REASONED), user("c")], None, {name: True})
    hostile = " ".join(map(between_words, tokens))
    yield Case("hostile", [user(hostile), assistant(hostile), user(hostile)])
    yield Case("hostile call", [system | {"content": hostile}, user("How?"), called("", {hostile: hostile}),
                                result(hostile)], TOOLS)  # fmt: skip


def between_words(token: str) -> str:
    """The token with words around it that stand nowhere else."""
    word = hashlib.sha256(token.encode()).hexdigest()[:12]
    return f"q{word}{token}{word}z"


def public_templates(folders: list[Path]) -> dict[str, str]:
    """Source by name, each once."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.jinja")):
            source = path.read_text()
            if source not in found.values():
                found[path.stem if path.stem not in found else f"{path.parent.name}/{path.stem}"] = source
    return found


def download() -> list[Path]:
    """Folders of the templates. pip asks a source distribution for its metadata, which takes the tools that build it;
    torch, which vLLM's asks for, is that of this environment."""
    tools = STORE / "build-tools"
    pip = [sys.executable, "-m", "pip"]
    if not tools.exists():
        subprocess.run([*pip, "install", "-q", "--target", str(tools), *BUILD_TOOLS], check=True)
    for name, version in DISTRIBUTIONS.items():
        folder = STORE / name
        if not folder.exists():
            environment = os.environ | {
                "PYTHONPATH": str(tools), "VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": version,
            }  # fmt: skip
            command = [*pip, "download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
            subprocess.run([*command, "-d", str(STORE / "archives"), f"{name}=={version}"], check=True, env=environment)
            unpack(name.replace("-", "_"), version, folder)
    return [STORE / name for name in DISTRIBUTIONS]


def unpack(name: str, version: str, folder: Path) -> None:
    with tarfile.open(STORE / "archives" / f"{name}-{version}.tar.gz") as archive:
        templates = [member for member in archive.getmembers() if member.name.endswith(".jinja")]
        archive.extractall(folder, templates, filter="data")


def outcome(render: Callable[[], T]) -> T | None:
    """None: the template refuses or fails."""
    try:
        return render()
    except Exception:  # whatever a template does
        return None


def theirs(source: str, template: LoadedTemplate, case: Case, **fields: Any) -> str:
    messages = [template.traits.shaped(message) for message in case.messages]
    variables = VARIABLES | (case.kwargs or {}) | fields
    prompts, _ = render_jinja_template([messages], tools=case.tools, documents=None, chat_template=source, **variables)
    prompt: str = prompts[0]
    return prompt


def ours(template: LoadedTemplate, case: Case, **fields: Any) -> list[tuple[str, bool]]:
    job = {"messages": case.messages, "tools": case.tools, "kwargs": case.kwargs or {}}
    return template.render(job | {"add_generation_prompt": False, "continue_final_message": False} | fields)


def differences(source: str, template: LoadedTemplate, case: Case, tokens: list[str]) -> tuple[int, list[str]]:
    """How many renderings were compared, and what was wrong with them."""
    compared, wrong = 0, []
    for generating in (True, False):
        fields = {"add_generation_prompt": generating}
        expected = outcome(lambda fields=fields: theirs(source, template, case, **fields))  # type: ignore[misc]
        runs = outcome(lambda fields=fields: ours(template, case, **fields))  # type: ignore[misc]
        found = None if runs is None else "".join(run for run, _ in runs)
        compared += expected is not None
        if found != expected:
            wrong.append(f"{case.name}: {found!r:.400}\n    instead of {expected!r:.400}")
        untrusted = [run for run, trusted in runs or [] if not trusted]
        if untrusted and not any(map(case.holds, tokens)):
            wrong.append(f"{case.name}: untrusted without reason: {untrusted[:9]}")
        wrong += [f"{case.name}: {token} is trusted" for token in forged(tokens, runs or [])]
    return compared, wrong


def forged(tokens: list[str], runs: list[tuple[str, bool]]) -> Iterator[str]:
    """Tokens of the caller's in a trusted run. Templates cut reasoning out at its tags and put tags of their own around
    it: those are not told apart here."""
    trusted = [run for run, is_trusted in runs if is_trusted]
    for token in set(tokens) - {"<think>", "</think>", "[THINK]", "[/THINK]"}:
        written = between_words(token)
        place = written.index(token)
        before, after = written[: place + len(token)], written[place:]
        if any(before in run or after in run for run in trusted):
            yield token


def continuation_differs(source: str, template: LoadedTemplate) -> str | None:
    """A short last message that stands everywhere in the prompt: the place to go on from is not found by its words."""
    case = Case("continued", [user("a e"), assistant("e"), user("a e"), assistant("a")])
    expected = outcome(lambda: theirs(source, template, case, continue_final_message=True))
    found = outcome(lambda: "".join(run for run, _ in ours(template, case, continue_final_message=True)))
    return (
        None
        if expected is None or found == expected
        else f"continued: {found!r:.300}\n    instead of {expected!r:.300}"
    )


def milliseconds(render: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        render()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def summary(template: LoadedTemplate) -> str:
    traits = template.traits
    reasoning = "part" if traits.reasoning == THINKING_PART else traits.reasoning
    parts = "".join(role[0] for role in sorted(traits.parts)) or "-"
    text = "".join(role[0] for role in sorted(traits.text)) or "-"
    return (
        f"text {text:5}parts {parts:5}arguments {traits.arguments}{' (null content)' * traits.null_content} "
        f"reasoning {reasoning}{' (or content)' * traits.one_of_both}"
    )


@dataclass(frozen=True)
class Report:
    """Of one template. Times in milliseconds; ours and theirs: of nine messages, 0 where it refuses them."""

    line: str
    compared: int
    wrong: list[str]
    loading: float
    ours: float
    theirs: float


def report(name: str, source: str) -> Report:
    tokens = sorted(set(CONTROL.findall(source)) | set(VARIABLES.values()))
    started = time.perf_counter()
    template = LoadedTemplate(source, tokens, "auto", VARIABLES, MAX_CHARS)
    loading = (time.perf_counter() - started) * 1000
    found = [differences(source, template, case, tokens) for case in cases(tokens)]
    wrong = [line for _, lines in found for line in lines]
    continued = continuation_differs(source, template)
    case = Case("speed", [user("What is the capital of France?"), assistant("Paris, of course.")] * 4 + [user("Why?")])
    takes = outcome(lambda: theirs(source, template, case)) is not None
    return Report(
        line=f"{name:56.56}{summary(template)}",
        compared=sum(compared for compared, _ in found),
        wrong=[*wrong, continued] if continued else wrong,
        loading=loading,
        ours=milliseconds(lambda: ours(template, case)) if takes else 0,
        theirs=milliseconds(lambda: theirs(source, template, case)) if takes else 0,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="templates that are there already")
    templates = public_templates(parser.parse_args().folders or download())
    reports = []
    for name, source in templates.items():
        reports.append(report(name, source))
        print(
            "BAD " if reports[-1].wrong else "ok  ", reports[-1].line, *map("\n  {}".format, reports[-1].wrong), sep=""
        )
    failed = sum(bool(one.wrong) for one in reports)
    print(
        f"{len(reports)} templates, {sum(one.compared for one in reports)} renderings compared, "
        f"{failed} templates differ"
    )
    loading = [one.loading for one in reports]
    mine, other = ([getattr(one, side) for one in reports if one.ours] for side in ("ours", "theirs"))
    print(
        f"nine messages: median {statistics.median(mine):.2f} ms (transformers {statistics.median(other):.2f} ms), "
        f"slowest {max(mine):.2f} ms; "
        f"loading: median {statistics.median(loading):.0f} ms, slowest {max(loading):.0f} ms"
    )
    return 1 if failed or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
