"""`inferd COMMAND ...`: find the command, turn failures into one line and an exit status."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from inferd.cli.arguments import Command, parse
from inferd.cli.flags import HEALTH_FLAGS, SERVE_FLAGS, UP_FLAGS
from inferd.cli.values import UsageError, nearest
from inferd.errors import StartupError

COMMANDS = {
    "serve": Command("serve", "Serve one model over gRPC.", SERVE_FLAGS, takes_model=True),
    "up": Command(
        "up", "Serve one model over gRPC and the OpenAI API: daemon and gateway.", UP_FLAGS, takes_model=True
    ),
    "health": Command("health", "Ask a daemon whether it serves; exit status 0 if so.", HEALTH_FLAGS),
    "version": Command("version", "Print versions.", ()),
}
BENCH, CLUSTER = "bench", "cluster"  # have subcommands, and flags of their own
USAGE_STATUS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. A wrong command line is 2, a failed start 1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return run(arguments)
    except UsageError as error:
        return fail(str(error), USAGE_STATUS)
    except StartupError as error:
        return fail(str(error), 1)


def run(arguments: Sequence[str]) -> int:
    """Find and run a command. Raises UsageError, StartupError."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())  # noqa: T201
        return 0 if arguments else USAGE_STATUS
    name = "version" if arguments[0] in ("-V", "--version") else arguments[0]
    if name == BENCH:
        from inferd.cli.bench import run_bench

        return run_bench(arguments[1:])
    if name == CLUSTER:
        from inferd.cli.cluster import run_cluster

        return run_cluster(arguments[1:])
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
    parsed = parse(COMMANDS[name], arguments[1:])
    module = importlib.import_module(f"inferd.cli.{name}")
    status: int = module.run(parsed)
    return status


def fail(message: str, status: int) -> int:
    print(f"inferd: error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return status


def usage() -> str:
    summaries = {name: command.summary for name, command in COMMANDS.items()} | {
        BENCH: "Load a running server; time the ops, the start.",
        CLUSTER: "Join this machine to a Ray cluster, or leave it.",
    }
    width = max(map(len, summaries))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in summaries.items()]
    return "\n".join(["usage: inferd COMMAND [flags]", "", *lines, "", "inferd COMMAND --help lists its flags."])
