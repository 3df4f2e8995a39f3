"""`inferd cluster start|stop`: a Ray cluster over the machines of a model, one line on each."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence

from inferd.address import join_address, split_address
from inferd.cli.arguments import Parser
from inferd.config import Count, FixedPort, number
from inferd.errors import StartupError

RAY_PORT = 6379
# Ray sends usage statistics and opens a dashboard unless told otherwise.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}


def run_cluster(arguments: Sequence[str]) -> int:
    """Start or stop this machine's part; the exit status. Raises UsageError, and StartupError without Ray."""
    options = cluster_parser().parse_args(arguments)
    if importlib.util.find_spec("ray") is None:
        raise StartupError("inferd cluster needs the package ray (extra: ray)")
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", *ray_arguments(options)]
    return subprocess.run(command, env={**os.environ, **ENVIRONMENT}, check=False).returncode


def cluster_parser() -> Parser:
    parser = Parser(prog="inferd cluster", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)
    start = actions.add_parser("start", help="make this machine part of a cluster")
    role = start.add_mutually_exclusive_group(required=True)
    role.add_argument("--head", action="store_true", help="the first machine")
    role.add_argument("--address", metavar="HOST:PORT", help="join the cluster of that first machine")
    start.add_argument(
        "--port", type=number(FixedPort), default=RAY_PORT, help=f"where the first one listens (default: {RAY_PORT})"
    )
    start.add_argument("--node-ip-address", metavar="IP", help="this machine's address, where it has several")
    start.add_argument(
        "--num-cpus", type=number(Count), help="workers it may run without accelerators (default: its cores)"
    )
    start.add_argument("--block", action="store_true", help="stay in the foreground, for containers")
    actions.add_parser("stop", help="leave the cluster; ends the workers here")
    return parser


def ray_arguments(options: object) -> list[str]:
    """The command line of Ray."""
    given = vars(options)
    if given["action"] == "stop":
        return ["stop"]
    words = ["start", "--disable-usage-stats"]
    if given["head"]:
        words += ["--head", f"--port={given['port']}", "--include-dashboard=false"]
    else:
        address = given["address"]
        words += [f"--address={with_port(address, given['port'])}"]
    for name in ("node_ip_address", "num_cpus"):
        if given[name] is not None:
            words += [f"--{name.replace('_', '-')}={given[name]}"]
    return [*words, "--block"] if given["block"] else words


def with_port(address: str, port: int) -> str:
    """The address as HOST:PORT, with this port where it names none."""
    try:
        return join_address(*split_address(address))
    except ValueError:
        return join_address(address, port)
