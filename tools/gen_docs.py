"""Write what docs/ says of flags and fields from the flags and fields themselves: `make docs`.

The tables between markers, and the two API references. --check fails when something differs, and changes nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inferd.cli.flags import GATEWAY_FLAGS, HEALTH_FLAGS, SERVE_FLAGS, Flag
from inferd.cli.vllm import NO_EFFECT, NOT_SUPPORTED
from tools.api_reference import grpc_reference, http_reference

ROOT = Path(__file__).resolve().parent.parent


def flag_table(flags: tuple[Flag, ...]) -> str:
    rows = ["| flag | default | meaning |", "|---|---|---|", *map(flag_row, flags)]
    return "\n".join(rows)


def flag_row(flag: Flag) -> str:
    names = ", ".join(f"`{name}`" for name in (f"--{flag.name}", *flag.aliases))
    default = flag.value_default
    shown = "" if default in (None, (), "") else f"`{str(default).lower() if flag.is_switch else default}`"
    choices = f" ({', '.join(f'`{choice}`' for choice in flag.choices)})" if flag.choices else ""
    return f"| {names} | {shown} | {flag.help.replace('|', '/')}{choices} |"


def no_effect_table() -> str:
    rows = [f"| `--{name}` | {entry.answer} |" for name, entry in NO_EFFECT.items()]
    return "\n".join(["| flag | why it has no effect |", "|---|---|", *rows])


def not_supported_table() -> str:
    rows = [f"| `--{name}` | {reason} |" for name, reason in NOT_SUPPORTED.items()]
    return "\n".join(["| flag | answer |", "|---|---|", *rows])


def tables() -> dict[str, str]:
    """Marker -> what stands between `<!-- MARKER -->` and `<!-- /MARKER -->`."""
    return {
        "serve flags": flag_table(SERVE_FLAGS),
        "gateway flags of up": flag_table(GATEWAY_FLAGS),
        "health flags": flag_table(HEALTH_FLAGS),
        "no effect": no_effect_table(),
        "not supported": not_supported_table(),
    }


def with_tables(text: str) -> str:
    """`text` with every marked table replaced. Raises ValueError for a marker that is not closed."""
    for marker, table in tables().items():
        start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
        if start in text:
            head, _, rest = text.partition(start)
            _, closed, tail = rest.partition(end)
            if not closed:
                raise ValueError(f"{start} is not closed")
            text = f"{head}{start}\n{table}\n{end}{tail}"
    return text


def documents() -> dict[Path, str]:
    """What every document of docs/ should say."""
    references = {ROOT / "docs" / "api-grpc.md": grpc_reference(), ROOT / "docs" / "api-http.md": http_reference()}
    written = sorted(set((ROOT / "docs").rglob("*.md")) - set(references))
    return references | {path: with_tables(path.read_text(encoding="utf-8")) for path in written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args().check
    stale = []
    for path, made in documents().items():
        if not path.exists() or path.read_text(encoding="utf-8") != made:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(made, encoding="utf-8")
    if check and stale:
        sys.exit("stale, run `make docs`: " + ", ".join(stale))


if __name__ == "__main__":
    main()
