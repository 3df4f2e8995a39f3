"""Real clients against the real product: `make clients`, or `python -m tools.clients.run [NAME...]`.

One virtual environment (or node_modules) per client, with the versions of requirements/ and node/, made once under
.clients/. Starts `inferd up demo`, runs each client's script, prints a table, exits 1 when a check failed. The Node
examples of docs/ run at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from inferd.testing.product import Product, free_port, running_product
from tools.clients.environments import ROOT, node_environment, python_environment

HERE = Path(__file__).resolve().parent
KEY = "the-key-of-this-run"
CHECKS = ("whole", "stream", "abort", "bad key", "unknown model", "structured", "tools")
SCRIPT_TIMEOUT_S = 300


@dataclass(frozen=True)
class Client:
    """script: below this folder. Python clients are installed from requirements/NAME.txt, Node's from node/."""

    name: str
    script: str

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")


CLIENTS = (
    Client("openai-3", "use_openai.py"),
    Client("openai-2", "use_openai.py"),
    Client("openai-1", "use_openai.py"),
    Client("openai-node", "node/use_openai.mjs"),
    Client("langchain-openai", "use_langchain.py"),
    Client("litellm", "use_litellm.py"),
    Client("instructor", "use_instructor.py"),
    Client("pydantic-ai", "use_pydantic_ai.py"),
    Client("llm", "use_llm.py"),
)


@dataclass(frozen=True)
class Outcome:
    """passed: by check; a check that never ran is missing."""

    client: str
    passed: dict[str, bool]

    @property
    def complete(self) -> bool:
        return all(self.passed.get(check, False) for check in CHECKS)


def command_of(client: Client) -> list[str]:
    """What runs the client's script, in its own environment."""
    if client.is_node:
        return ["node", str(node_environment(client.name, HERE / "node") / Path(client.script).name)]
    python = python_environment(client.name, HERE / "requirements" / f"{client.name}.txt")
    return [python, str(HERE / client.script)]


def run_client(client: Client, command: list[str], product: Product) -> Outcome:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "INFERD_URL": product.http,
        "INFERD_KEY": KEY,
        "INFERD_METRICS": product.metrics,
        "INFERD_MODEL": "demo",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would fetch a table of prices at import
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=SCRIPT_TIMEOUT_S)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for one in found:
        if one["error"]:
            print(f"{client.name}, {one['check']}: {one['error']}", flush=True)
    return Outcome(client.name, {one["check"]: not one["error"] for one in found})


def run_node_examples(model: str) -> bool:
    """Every RPC once, from Node; one of them needs a model that embeds, some the administrator's listener."""
    folder = node_environment("node-examples", ROOT / "docs" / "examples" / "node")
    admin = f"127.0.0.1:{free_port()}"
    flags = ("--pooling", "mean", "--admin-listen", admin, "--admin-api-key", KEY)
    environment = os.environ | {"INFERD_PROTO": str(ROOT / "proto"), "INFERD_ADMIN_API_KEY": KEY}
    with running_product(model, *flags) as product:
        command = ["node", str(folder / "examples.mjs"), product.address, admin]
        return subprocess.run(command, env=environment, timeout=SCRIPT_TIMEOUT_S).returncode == 0


def table(outcomes: list[Outcome]) -> str:
    rows = [["client", *CHECKS]]
    for outcome in outcomes:
        rows.append([outcome.client, *(shown(outcome.passed.get(check)) for check in CHECKS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def shown(passed: bool | None) -> str:
    return {True: "pass", False: "FAIL", None: "not run"}[passed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(client.name for client in CLIENTS))
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {client.name for client in CLIENTS}:
        parser.error(f"unknown clients: {', '.join(sorted(unknown))}")
    chosen = [client for client in CLIENTS if not arguments.names or client.name in arguments.names]
    commands = {client.name: command_of(client) for client in chosen}
    flags = ("--api-key", KEY, "--served-model-name", "demo", "--tool-call-parser", "hermes")
    with running_product(arguments.model, *flags) as product:
        outcomes = [run_client(client, commands[client.name], product) for client in chosen]
    examples_pass = bool(arguments.names) or run_node_examples(arguments.model)
    print(table(outcomes))
    if not examples_pass:
        print("the Node examples failed")
    sys.exit(not (examples_pass and all(outcome.complete for outcome in outcomes)))


if __name__ == "__main__":
    main()
