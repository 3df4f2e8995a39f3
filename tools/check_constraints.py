"""2,000 constraints against a running daemon, the hostile corpus among them: `make constraints-check`.

Many at a time on a tiny random model, whose output is as odd as it gets. Each is accepted or refused as a constraint;
every output that ended by itself is judged by jsonschema, `re`, `regex` or a reader written here; and ordinary
generations beside them draw, throughout, the tokens that they draw alone. Exits 1 when one of this does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import regex

from inferd.testing.hostile_constraints import HOSTILE_GRAMMARS, hostile_constraints
from inferd.testing.product import running_product
from inferd.testing.random_constraints import ConstraintCase, must_validate, random_case
from inferd.testing.tiny_chat import write_tiny_chat
from inferd.testing.wire import decode_failure
from inferd.v1 import inference_pb2, inference_pb2_grpc

MAX_TOKENS = 240
NEIGHBOUR_TOKENS = 60
AT_ONCE = 24
NEIGHBOURS = 4
TIMEOUT_S = 300
CHECK_TIMEOUT_S = 20
REFUSALS = ("INVALID_CONSTRAINT", "CONSTRAINT_FAILED")
# What ends and separates is made likelier, so that more of the outputs come to an end.
BIAS = {ord(char): 2.0 for char in '"}],:'}

# The languages of the hostile grammars, in their order, as regexes; None: its shortest text is longer than any output.
GRAMMAR_LANGUAGES = (
    None,
    "a*",
    "a+",
    "a+",
    "a+",
    "a",
    None,
    "a+",
    r"w\d{1,4}",
    "[a-z]*",
    "a*",
    r"(?s).+",
    "[Ā-῿]",
)


@dataclass
class Tally:
    """What came of all cases."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    neighbours: int = 0
    slowest: tuple[float, str] = (0.0, "")


def hostile_cases() -> Iterator[tuple[str, ConstraintCase]]:
    for name, fields in hostile_constraints().items():
        yield name, ConstraintCase(fields, hostile_check(name, fields))


def hostile_check(name: str, fields: dict[str, Any]) -> Callable[[str], None]:
    """An invalid schema has no judge: it must have been refused."""
    ((kind, value),) = fields.items()
    if kind == "regex":
        return must_match(value)
    if kind == "ebnf":
        language = GRAMMAR_LANGUAGES[HOSTILE_GRAMMARS.index(value)]
        return refuse_all(name) if language is None else must_match(language)
    if kind == "json_schema":
        try:
            return must_validate(json.loads(value))
        except (ValueError, RecursionError):
            return refuse_all(name)
    if kind == "choices":
        return must_be_among(value["values"])
    return {"tag: 2000 tags": must_hold_tags, "tag: any text in any text": lambda text: None}.get(
        name, refuse_all(name)
    )


def must_match(pattern: str) -> Callable[[str], None]:
    """`regex` knows the classes that `re` does not, and can be stopped."""

    def check(text: str) -> None:
        assert regex.fullmatch(pattern, text, timeout=CHECK_TIMEOUT_S), f"{text!r} does not match {pattern[:80]}"

    return check


def must_be_among(values: list[str]) -> Callable[[str], None]:
    def check(text: str) -> None:
        assert text in values

    return check


def must_hold_tags(text: str) -> None:
    """Free text in which every `<` begins one of the tags, and JSON follows it."""
    while "<" in text:
        match = regex.match(r"<(\d+)>\s*", text[text.index("<") :])
        assert match, text
        assert int(match[1]) < 1200
        rest = text[text.index("<") + match.end() :]
        _, end = json.JSONDecoder().raw_decode(rest)
        text = rest[end:]


def refuse_all(name: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        raise AssertionError(f"{name} cannot have the output {text[:80]!r}")

    return check


def all_cases(count: int) -> list[tuple[str, ConstraintCase]]:
    """`count` of them: the hostile ones spread among random ones."""
    hostile = list(hostile_cases())
    cases = [(f"random {seed}", random_case(seed)) for seed in range(max(0, count - len(hostile)))]
    step = max(1, len(cases) // len(hostile))
    for index, case in enumerate(hostile):
        cases.insert(index * (step + 1), case)
    return cases[:count]


def request(seed: int, constraint: dict[str, Any] | None) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        prompt={"text": "{" if constraint else "A story:"},
        sampling={"temperature": 1.0, "seed": seed, "logit_bias": BIAS if constraint else {}},
        stop={"max_tokens": MAX_TOKENS if constraint else NEIGHBOUR_TOKENS, "ignore_eos": constraint is None},
        constraint=constraint,
    )


async def run_case(stub: Any, seed: int, name: str, case: ConstraintCase, tally: Tally) -> None:
    text, reason = "", inference_pb2.FINISH_REASON_UNSPECIFIED
    try:
        async for message in stub.Generate(request(seed, case.fields), timeout=TIMEOUT_S):
            for choice in message.choices:
                text += choice.text
                reason = choice.finish.reason or reason
    except grpc.aio.AioRpcError as error:
        failure = decode_failure(error)
        tally.outcomes[f"{failure.code} {failure.reason}"] += 1
        if failure.reason not in REFUSALS:
            tally.faults.append(f"{name}: {failure.code} {failure.reason}: {failure.message[:200]}")
        return
    if reason != inference_pb2.FINISH_REASON_EOS:
        tally.outcomes["accepted, cut off"] += 1
        return
    try:
        await asyncio.to_thread(case.check, text)
        tally.outcomes["accepted, ended, valid"] += 1
    except TimeoutError:
        tally.outcomes["accepted, ended, too hard to judge"] += 1
    except Exception as error:
        tally.outcomes["accepted, ended, INVALID"] += 1
        tally.faults.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")


async def tokens_of(stub: Any, seed: int) -> list[int]:
    messages: AsyncIterator[Any] = stub.Generate(request(seed, None), timeout=TIMEOUT_S)
    return [token async for message in messages for choice in message.choices for token in choice.token_ids]


async def be_neighbour(stub: Any, seed: int, alone: list[int], done: asyncio.Event, tally: Tally) -> None:
    while not done.is_set():
        if await tokens_of(stub, seed) != alone:
            tally.faults.append(f"neighbour {seed}: other tokens than alone")
        tally.neighbours += 1


async def run(address: str, cases: list[tuple[str, ConstraintCase]]) -> Tally:
    tally, done, places = Tally(), asyncio.Event(), asyncio.Semaphore(AT_ONCE)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        alone = [await tokens_of(stub, seed) for seed in range(NEIGHBOURS)]
        assert all(len(tokens) == NEIGHBOUR_TOKENS for tokens in alone)
        neighbours = [
            asyncio.create_task(be_neighbour(stub, seed, tokens, done, tally)) for seed, tokens in enumerate(alone)
        ]

        async def one(seed: int, name: str, case: ConstraintCase) -> None:
            async with places:
                started = time.monotonic()
                await run_case(stub, seed, name, case, tally)
                tally.slowest = max(tally.slowest, (time.monotonic() - started, name))

        await asyncio.gather(*(one(seed, name, case) for seed, (name, case) in enumerate(cases)))
        done.set()
        await asyncio.gather(*neighbours)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_chat(Path(folder))
        with running_product(folder, "--threads", "1") as product:
            tally = asyncio.run(run(product.address, all_cases(arguments.count)))
    print(f"{sum(tally.outcomes.values())} constraints in {time.monotonic() - started:.0f} s")
    for outcome, count in tally.outcomes.most_common():
        print(f"  {count:5} {outcome}")
    print(f"  {tally.neighbours:5} generations beside them compared with the same alone")
    print(f"  slowest: {tally.slowest[1]}, {tally.slowest[0]:.1f} s")
    print("\n".join(tally.faults) or "no faults")
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
