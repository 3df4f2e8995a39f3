"""One call through both entrances of a running product, and what came of it in one form, for comparison."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx

from inferd.testing.product import Product
from inferd.testing.wire import Failure, decode_failure
from inferd.v1 import common_pb2, inference_pb2, inference_pb2_grpc

FINISH = {
    inference_pb2.FINISH_REASON_EOS: "stop",
    inference_pb2.FINISH_REASON_STOP_TOKEN: "stop",
    inference_pb2.FINISH_REASON_STOP_STRING: "stop",
    inference_pb2.FINISH_REASON_MAX_TOKENS: "length",
    inference_pb2.FINISH_REASON_CONTEXT_FULL: "length",
    inference_pb2.FINISH_REASON_TIME_LIMIT: "length",
}
FLOOR = -9999.0
TIMEOUT_S = 30


@dataclass
class Position:
    """One token, its log probability, and the alternatives by name."""

    name: str
    logprob: float | None
    top: dict[str, float] | None


@dataclass
class Choice:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish: str | None = None
    stopped_by: str | int | None = None
    positions: list[Position] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)


@dataclass
class Outcome:
    """An accepted generation."""

    choices: list[Choice]
    usage: tuple[int, int, int]  # prompt, cached and completion tokens
    prompt_ids: list[int] | None = None
    prompt_logprobs: list[Any] | None = None


@dataclass(frozen=True)
class Refusal:
    """A refused call. status: what HTTP says, or what the table makes of the gRPC code."""

    status: int
    code: str | None
    param: str | None
    message: str


@dataclass(frozen=True)
class Names:
    """How a token is written in HTTP's logprobs."""

    as_ids: bool
    chat: bool

    def of(self, token_id: int, raw: bytes) -> str:
        if self.as_ids:
            return f"token_id:{token_id}"
        if self.chat:
            return raw.decode("utf-8", "replace")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class Entrances:
    """Both clients of a product. A context manager."""

    def __init__(self, product: Product, model: str) -> None:
        self.product = product
        self.model = model
        self.http = httpx.Client(base_url=product.http, timeout=TIMEOUT_S, trust_env=False)
        self._channel = product.channel()
        self.stub = inference_pb2_grpc.InferenceServiceStub(self._channel)

    def __enter__(self) -> Entrances:
        return self

    def __exit__(self, *exc: object) -> None:
        self.http.close()
        self._channel.close()

    def post(self, path: str, body: Mapping[str, Any] | str | bytes) -> httpx.Response:
        """A body as JSON, with whatever json.dumps writes for NaN; text goes as it is."""
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        return self.http.post(path, content=content, headers={"content-type": "application/json"})

    def ask(self, path: str, body: Mapping[str, Any]) -> Outcome | Refusal:
        """Over HTTP, streamed or whole, whatever the body says."""
        response = self.post(path, body)
        if response.status_code != 200:
            return refusal_of(response)
        if response.headers["content-type"].startswith("text/event-stream"):
            return join_events(events_of(response.text))
        return outcome_of(response.json())

    def generate(self, request: inference_pb2.GenerateRequest, names: Names) -> Outcome | Failure:
        """Over gRPC."""
        try:
            return joined(self.stub.Generate(request, timeout=TIMEOUT_S), request, names)
        except grpc.RpcError as error:
            return decode_failure(error)

    def encode(self, prompt: common_pb2.Prompt) -> list[int]:
        if prompt.WhichOneof("kind") == "token_ids":
            return list(prompt.token_ids.ids)
        return list(self.stub.Tokenize(inference_pb2.TokenizeRequest(inputs=[prompt])).inputs[0].token_ids)


def refusal_of(response: httpx.Response) -> Refusal:
    """Raises KeyError for a body that is not OpenAI's error object."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    return Refusal(response.status_code, error["code"], error["param"], error["message"])


def events_of(text: str) -> list[dict[str, Any]]:
    """The data of a stream that ended well."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1]
    return [json.loads(line) for line in lines[:-1]]


def outcome_of(reply: Mapping[str, Any]) -> Outcome:
    """Of a whole chat or text completion."""
    choices = [choice_of(choice) for choice in sorted(reply["choices"], key=lambda choice: int(choice["index"]))]
    first = reply["choices"][0]
    return Outcome(
        choices,
        usage_of(reply["usage"]),
        reply.get("prompt_token_ids", first.get("prompt_token_ids")),
        reply.get("prompt_logprobs", first.get("prompt_logprobs")),
    )


def choice_of(choice: Mapping[str, Any]) -> Choice:
    message = choice.get("message", {})
    functions = [call["function"] for call in message.get("tool_calls", [])]
    return Choice(
        choice["text"] if "text" in choice else message["content"] or "",
        choice.get("token_ids") or [],
        choice["finish_reason"],
        choice.get("stop_reason"),
        positions_of(choice["logprobs"]),
        [(function["name"], json.loads(function["arguments"])) for function in functions],
    )


def positions_of(logprobs: Mapping[str, Any] | None) -> list[Position]:
    if logprobs is None:
        return []
    if "content" in logprobs:
        return [
            Position(item["token"], item["logprob"], {top["token"]: top["logprob"] for top in item["top_logprobs"]})
            for item in logprobs["content"]
        ]
    columns = (logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs"))
    return [Position(*row) for row in zip(*columns, strict=True)]


def usage_of(usage: Mapping[str, Any]) -> tuple[int, int, int]:
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]


def join_events(events: list[dict[str, Any]]) -> Outcome:
    """The chunks of a stream put together, their grammar checked."""
    choices: dict[int, Choice] = {}
    usage, prompt_ids = (0, 0, 0), None
    for chunk in events:
        if chunk.get("usage"):
            usage = usage_of(chunk["usage"])
        prompt_ids = chunk.get("prompt_token_ids", prompt_ids)
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], Choice())
            assert choice.finish is None, "a chunk after the finish"
            choice.text += part["text"] if "text" in part else part["delta"].get("content") or ""
            choice.token_ids += part.get("token_ids") or []
            choice.positions += positions_of(part["logprobs"])
            choice.finish, choice.stopped_by = part["finish_reason"], part.get("stop_reason")
            prompt_ids = part.get("prompt_token_ids") or prompt_ids
    assert all(choice.finish for choice in choices.values())
    return Outcome([choices[index] for index in sorted(choices)], usage, prompt_ids)


def joined(
    stream: Iterable[inference_pb2.GenerateResponse], request: inference_pb2.GenerateRequest, names: Names
) -> Outcome:
    """What HTTP should make of a gRPC stream."""
    choices: defaultdict[int, Choice] = defaultdict(Choice)
    prompt, usage = inference_pb2.PromptInfo(), (0, 0, 0)
    for message in stream:
        if message.HasField("prompt"):
            prompt = message.prompt
        if message.HasField("timing"):
            used = message.usage
            usage = (used.prompt_tokens, used.cached_prompt_tokens, used.completion_tokens)
        for delta in message.choices:
            choice = choices[delta.index]
            choice.text += delta.text
            choice.token_ids += delta.token_ids
            choice.positions += packed(delta.logprobs, names)
            if delta.HasField("finish"):
                choice.finish = FINISH[delta.finish.reason]
                choice.stopped_by = stopped_by(delta.finish)
    logprobs = prompt_logprobs(prompt.logprobs, names) if request.output.HasField("prompt_logprobs") else None
    found = [choices[index] for index in sorted(choices)]
    return Outcome(found, usage, list(prompt.token_ids) or None, logprobs)


def stopped_by(finish: inference_pb2.Finish) -> str | int | None:
    if finish.reason == inference_pb2.FINISH_REASON_STOP_STRING:
        return finish.stop_string
    return finish.stop_token_id if finish.reason == inference_pb2.FINISH_REASON_STOP_TOKEN else None


def packed(logprobs: inference_pb2.Logprobs, names: Names) -> list[Position]:
    """In chat only the alternatives are told; in completions the chosen token is always among them."""
    found, start = [], 0
    for index, value in enumerate(logprobs.values):
        end = start + logprobs.top_counts[index]
        name = names.of(logprobs.token_ids[index], logprobs.token_bytes[index])
        top = {} if names.chat else {name: max(value, FLOOR)}
        for at in range(start, end):
            top.setdefault(
                names.of(logprobs.top_token_ids[at], logprobs.top_token_bytes[at]), max(logprobs.top_values[at], FLOOR)
            )
        found.append(Position(name, max(value, FLOOR), top))
        start = end
    return found


def prompt_logprobs(logprobs: inference_pb2.Logprobs, names: Names) -> list[Any]:
    """vLLM's form: by token id, the chosen one with its rank."""
    found: list[Any] = [None] * logprobs.start_position
    start = 0
    for index, value in enumerate(logprobs.values):
        end = start + logprobs.top_counts[index]
        rows = [
            (logprobs.top_token_ids[at], logprobs.top_values[at], at - start + 1, logprobs.top_token_bytes[at])
            for at in range(start, end)
        ]
        rows.append((logprobs.token_ids[index], value, logprobs.ranks[index], logprobs.token_bytes[index]))
        found.append(
            {
                str(token_id): {"logprob": max(value, FLOOR), "rank": rank, "decoded_token": names.of(token_id, raw)}
                for token_id, value, rank, raw in rows
            }
        )
        start = end
    return found
