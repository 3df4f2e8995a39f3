"""The matrix of values that hurt, over both entrances, with a canary beside it: each is taken or refused by both, with
codes that match, at once, in words that tell nothing of the inside; and nobody else notices anything.

A sample of it runs by default; all single values and some thousand pairs are `make contract-full`.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from inferd.testing.canary import Canary
from inferd.testing.error_contract import CONTRACT
from inferd.testing.hostile_values import Hostile, Mutation, http_values, message_values
from inferd.testing.http_fields import (
    CHAT_PATH,
    CHATS,
    COMPLETION_PATH,
    COMPLETIONS,
    MODEL,
    Case,
    build_call,
)
from inferd.testing.http_meanings import NotOverGrpc
from inferd.testing.parity import Entrances
from inferd.testing.product import Product
from inferd.testing.wire import Failure, decode_failure
from inferd.v1 import inference_pb2

BODIES: Mapping[str, Mapping[str, Any]] = {
    COMPLETION_PATH: {"model": MODEL, "prompt": "hello", "max_tokens": 2, "temperature": 0},
    CHAT_PATH: {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "temperature": 0},
}
OTHER_BODIES: Mapping[str, Mapping[str, Any]] = {
    "/v1/responses": {"model": MODEL, "input": "hello", "max_output_tokens": 2},
    "/v1/messages": {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
    "/v1/messages/count_tokens": {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]},
    "/tokenize": {"model": MODEL, "prompt": "hello"},
    "/detokenize": {"model": MODEL, "tokens": [1, 2]},
    "/v1/embeddings": {"model": MODEL, "input": "hello"},
    "/pooling": {"model": MODEL, "input": "hello"},
    "/classify": {"model": MODEL, "input": "hello"},
    **{path: {"model": MODEL, "text_1": "a", "text_2": "b"} for path in ("/score", "/v1/score")},
    **{path: {"model": MODEL, "query": "a", "documents": ["b"]} for path in ("/rerank", "/v1/rerank", "/v2/rerank")},
}
CASES = {COMPLETION_PATH: COMPLETIONS, CHAT_PATH: CHATS}
# HTTP refuses these by itself, though gRPC has a meaning for them.
HTTP_REFUSES: Mapping[str, Callable[[Any], bool]] = {
    "max_tokens": lambda value: value == 0,  # nothing would come back
    "max_completion_tokens": lambda value: value == 0,
    "model": lambda value: value == "",  # over gRPC: the only model
    "truncate_prompt_tokens": lambda value: value >= 2**32,
    "request_id": lambda value: True,  # shorter here, so that there is room for a prefix
}
ANSWER_S = 30.0  # no answer may hang; the machine may be busy
TOLD_TOO_MUCH = re.compile(r"0x[0-9a-f]{6,}|object at|Traceback|File \"|site-packages|/inferd/|\.py\b")
TYPED = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"}


def schemas_of(entrances: Entrances) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(path -> the properties of its body, all schemas)."""
    document = entrances.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    found = {}
    for path, operations in document["paths"].items():
        if "post" in operations:
            schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            names = [one["$ref"].rpartition("/")[2] for one in schema.get("anyOf", [schema])]
            found[path] = {key: value for name in names for key, value in schemas[name]["properties"].items()}
    return found, schemas


Changes = dict[str, Hostile]


def singles(entrances: Entrances, paths: Iterable[str]) -> list[tuple[str, Changes]]:
    properties, schemas = schemas_of(entrances)
    return [
        (path, {name: hostile})
        for path in paths
        for name, schema in properties[path].items()
        for hostile in http_values(name, schema, schemas)
    ]


def pairs(found: list[tuple[str, Changes]], count: int, rng: random.Random) -> Iterator[tuple[str, Changes]]:
    """Two hostile values of different fields of one route."""
    by_path: dict[str, list[Changes]] = {}
    for path, changes in found:
        by_path.setdefault(path, []).append(changes)
    for _ in range(count):
        path = rng.choice(list(by_path))
        first, second = rng.sample(by_path[path], 2)
        yield path, first | second


def sample_of(found: list[tuple[str, Changes]], count: int | None, rng: random.Random) -> list[tuple[str, Changes]]:
    """So many, few of the heavy ones among them; None: all."""
    if count is None:
        return found
    heavy = [case for case in found if any(one.is_heavy for one in case[1].values())]
    light = [case for case in found if not any(one.is_heavy for one in case[1].values())]
    return rng.sample(light, count) + rng.sample(heavy, count // 60)


@dataclass
class Matrix:
    """Runs cases side by side; collects what is wrong."""

    entrances: Entrances

    def run(self, work: Callable[[Any], str | None], cases: Iterable[Any]) -> None:
        with ThreadPoolExecutor(4) as pool:
            problems = [problem for problem in pool.map(work, cases) if problem]
        assert not problems, f"{len(problems)} problems\n" + "\n".join(problems[:20])

    def agreement(self, case: tuple[str, Changes]) -> str | None:
        """HTTP and gRPC take the values, or refuse them alike."""
        path, changes = case
        body = {**BODIES[path], **around(CASES[path], changes), **{name: one.value for name, one in changes.items()}}
        label = f"{path} { ({name: str(one) for name, one in changes.items()}) }"
        started = time.monotonic()
        status, code, problem = self.over_http(path, body, changes)
        if problem or time.monotonic() - started > ANSWER_S:
            return f"{label}: {problem or 'slow'}"
        expected = self.over_grpc(path, body, changes)
        if expected is not None and len(changes) > 1 and min(status, expected[0]) >= 400:
            return None  # of two faults, either may be told
        if expected is not None and expected != (status, code):
            return f"{label}: HTTP {status} {code}, gRPC means {expected}"
        return None

    def over_http(self, path: str, body: Mapping[str, Any], changes: Changes) -> tuple[int, str | None, str | None]:
        """(status, error code, what is wrong with the answer)."""
        response = self.entrances.post(path, json.dumps(body))
        if response.status_code == 200:
            untyped = any(not one.typed for one in changes.values()) and not harmless(changes)
            return 200, None, "a value of the wrong type was taken" if untyped else None
        try:
            error = response.json()["error"]
        except (ValueError, KeyError):
            return response.status_code, None, f"no error object: {response.text[:200]}"
        problem = None
        if response.status_code not in (400, 404, 413):
            problem = f"status {response.status_code}: {error}"
        elif len(response.text) > 4096 or TOLD_TOO_MUCH.search(error["message"]):
            problem = f"tells too much: {error['message'][:300]}"
        elif not names_a_field(error, changes, body):
            problem = f"param {error.get('param')!r}: {error['message'][:200]}"
        return response.status_code, error.get("code"), problem

    def over_grpc(self, path: str, body: Mapping[str, Any], changes: Changes) -> tuple[int, str | None] | None:
        """What HTTP should have said; None where gRPC has no say."""
        cases = CASES[path]
        if any(not one.typed for one in changes.values()):
            return None
        if not all(cases[name].is_judged_by_the_daemon for name in changes):
            return None
        try:
            call = build_call(body, cases, self.entrances)
        except (NotOverGrpc, TypeError, ValueError, KeyError, AttributeError, grpc.RpcError):
            return None
        outcome = self.entrances.generate(call.request, call.names)
        if not isinstance(outcome, Failure):
            if any(name in HTTP_REFUSES and HTTP_REFUSES[name](one.value) for name, one in changes.items()):
                return None
            return 200, None
        assert outcome.code in TYPED, outcome
        if not outcome.reason:
            return 413, "request_too_large"
        _, status, _, code, _ = CONTRACT[outcome.reason]
        return status, code

    def message(self, case: tuple[str, list[tuple[str, Mutation]]]) -> str | None:
        """A call of gRPC alone ends in OK or in one typed error."""
        method, mutations = case
        label = f"{method} {[name for name, _ in mutations]}"
        request = seeded(method)
        for _, mutate in mutations:
            mutate(request)
        try:
            answer = getattr(self.entrances.stub, method)(request, timeout=ANSWER_S)
            for _ in answer if method == "Generate" else ():
                pass
        except grpc.RpcError as error:
            failure = decode_failure(error)
            if failure.code not in TYPED:
                return f"{label}: {failure.code} {failure.message}"
            if len(failure.message) > 4096 or TOLD_TOO_MUCH.search(failure.message):
                return f"{label}: tells too much: {failure.message[:300]}"
        return None


def around(cases: Mapping[str, Case], changes: Changes) -> dict[str, Any]:
    """What logprobs need to be asked for at all."""
    if "top_logprobs" in changes or "logprob_token_ids" in changes:
        return {"logprobs": True} if cases is CHATS else {"logprobs": 1}
    return {"stream": True} if "stream_options" in changes else {}


def harmless(changes: Changes) -> bool:
    """An empty list or object may stand for none, a whole number for one with a fraction."""
    return all(one.typed or one.value in ([], {}) for one in changes.values())


def names_a_field(error: Mapping[str, Any], changes: Changes, body: Mapping[str, Any]) -> bool:
    """Whether `param` is one of the fields that were tampered with; text that is no JSON has no fields."""
    param = error.get("param")
    if param is None:
        return "JSON" in error["message"] or "larger than" in error["message"] or error["code"] is not None
    return re.split(r"[.\[]", param)[0] in {*changes, *body}


def seeded(method: str) -> Any:
    """A request that is accepted."""
    match method:
        case "Generate":
            return inference_pb2.GenerateRequest(prompt={"text": "hello"}, stop={"max_tokens": 2})
        case "Embed":
            return inference_pb2.EmbedRequest(inputs=[{"text": "hello"}])
        case "Score":
            labels = {"prompts": [{"text": "hello"}], "label_token_ids": [1, 2]}
            return inference_pb2.ScoreRequest(labels=labels)
        case "Tokenize":
            return inference_pb2.TokenizeRequest(inputs=[{"text": "hello"}])
    return inference_pb2.DetokenizeRequest(inputs=[{"ids": [1, 2]}])


METHODS = ("Generate", "Embed", "Score", "Tokenize", "Detokenize")


def mutations() -> dict[str, list[tuple[str, Mutation]]]:
    return {method: list(message_values(seeded(method).DESCRIPTOR)) for method in METHODS}


def run_agreement(product: Product, entrances: Entrances, sample: int | None, num_pairs: int) -> int:
    rng, found = random.Random(20), singles(entrances, BODIES)
    chosen = sample_of(found, sample, rng)
    cases = [*chosen, *pairs(chosen, num_pairs, rng)]
    with Canary(product, MODEL) as canary:
        matrix = Matrix(entrances)
        matrix.run(matrix.agreement, cases)
    canary.check()
    return len(cases)


def run_messages(product: Product, entrances: Entrances, sample: int | None, num_pairs: int) -> int:
    rng, found = random.Random(21), mutations()
    alone = [(method, [one]) for method, each in found.items() for one in each]
    cases = alone if sample is None else rng.sample(alone, sample)
    for _ in range(num_pairs):
        method = rng.choice(METHODS)
        cases.append((method, rng.sample(found[method], 2)))
    with Canary(product, MODEL) as canary:
        matrix = Matrix(entrances)
        matrix.run(matrix.message, cases)
    canary.check()
    return len(cases)


def run_other_routes(product: Product, entrances: Entrances, sample: int | None) -> int:
    """Routes whose fields become those of the two above, or of another RPC: an answer, or a typed refusal."""
    rng, found = random.Random(22), singles(entrances, OTHER_BODIES)
    cases = sample_of(found, sample, rng)

    def answered(case: tuple[str, Changes]) -> str | None:
        path, changes = case
        body = {**OTHER_BODIES[path], **{name: one.value for name, one in changes.items()}}
        response = entrances.post(path, json.dumps(body))
        known = response.status_code in (200, 400, 404, 413) and (
            response.status_code == 200 or "message" in response.json()["error"]
        )
        return None if known else f"{path} {changes}: {response.status_code} {response.text[:200]}"

    with Canary(product, MODEL) as canary:
        Matrix(entrances).run(answered, cases)
    canary.check()
    return len(cases)


def test_every_route_with_a_body_is_in_the_matrix(entrances: Entrances) -> None:
    assert set(schemas_of(entrances)[0]) == {*BODIES, *OTHER_BODIES}


def test_a_sample_of_fields_agrees(product: Product, entrances: Entrances) -> None:
    run_agreement(product, entrances, 90, 40)


def test_a_sample_of_messages_is_answered(product: Product, entrances: Entrances) -> None:
    run_messages(product, entrances, 120, 40)


def test_a_sample_of_the_other_routes_is_answered(product: Product, entrances: Entrances) -> None:
    run_other_routes(product, entrances, 60)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_fields_agree(product: Product, entrances: Entrances) -> None:
    run_agreement(product, entrances, None, 1500)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_messages_are_answered(product: Product, entrances: Entrances) -> None:
    run_messages(product, entrances, None, 1000)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_all_other_routes_are_answered(product: Product, entrances: Entrances) -> None:
    run_other_routes(product, entrances, None)
