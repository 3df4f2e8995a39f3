"""What every client script needs: where the server is, what to ask, how outcomes are told. Standard library only.

A script runs in a virtual environment that holds its client and nothing of inferd. It hands `report` one function per
check; a check passes when it returns. tools/clients/run.py starts the server and reads the lines.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from typing import Any

URL = os.environ.get("INFERD_URL", "http://127.0.0.1:8000")
BASE_URL = f"{URL}/v1"
KEY = os.environ.get("INFERD_KEY", "none")
WRONG_KEY = "not-the-key"
METRICS = os.environ.get("INFERD_METRICS", "http://127.0.0.1:9400/metrics")
MODEL = os.environ.get("INFERD_MODEL", "demo")
WRONG_MODEL = "no-such-model"

QUESTION = "What is the capital of France? Answer in one sentence."
ANSWER = "Paris"
MAX_TOKENS = 40
LONG_TOKENS = 1500  # half a minute and more, unless it is aborted
ABORT_WITHIN_S = 5.0

# Bounded on purpose: a model of 135M parameters writes within the bounds, not to the point.
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 16},
        "continent": {"type": "string", "enum": ["Europe", "Asia", "Africa", "America", "Oceania"]},
    },
    "required": ["name", "continent"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look_up_city", "description": "Looks a city up.", "parameters": CITY},
}


def is_city(value: Any) -> bool:
    names, continents = CITY["properties"]["name"], CITY["properties"]["continent"]["enum"]
    return (
        set(value) == {"name", "continent"}
        and 1 <= len(value["name"]) <= names["maxLength"]
        and value["continent"] in continents
    )


def aborted_choices() -> float:
    return series("inferd_requests_finished_total{", 'reason="abort"')


def running_choices() -> float:
    return series("inferd_requests_running{")


def series(start: str, part: str = "") -> float:
    """Sum of the daemon's series that begin with `start` and contain `part`."""
    with urllib.request.urlopen(METRICS, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start) and part in line)


def assert_aborted(before: float) -> None:
    """The generation that was left alone stopped: counted as aborted, and nothing runs."""
    deadline = time.monotonic() + ABORT_WITHIN_S
    while running_choices() > 0 or aborted_choices() <= before:
        assert time.monotonic() < deadline, f"still running {ABORT_WITHIN_S} s after the client left"
        time.sleep(0.05)


def assert_raises(kind: type[BaseException], call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def report(checks: dict[str, Callable[[], Any]]) -> None:
    """Run them in order, print a JSON line for each, exit 1 when one failed."""
    failed = False
    for name, check in checks.items():
        started = time.monotonic()
        error = ""
        try:
            check()
        except BaseException as caught:
            traceback.print_exc()
            error = f"{type(caught).__name__}: {caught}"
            failed = True
        line = {"check": name, "error": error, "seconds": round(time.monotonic() - started, 2)}
        print(json.dumps(line), flush=True)
    sys.exit(failed)
