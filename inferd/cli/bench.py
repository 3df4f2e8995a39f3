"""`inferd bench ...`: hand over to the load generator, which has flags of its own."""

from __future__ import annotations

from collections.abc import Sequence

from inferd.bench.commands import add_commands
from inferd.cli.arguments import Parser


def run_bench(arguments: Sequence[str]) -> int:
    """Run one benchmark; its exit status. Raises UsageError."""
    parser = Parser(prog="inferd bench", allow_abbrev=False)
    add_commands(parser)
    namespace = parser.parse_args(arguments)
    status: int = namespace.run(namespace)
    return status
