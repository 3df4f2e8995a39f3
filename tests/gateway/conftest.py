"""A daemon that speaks inferd.v1 with a byte-level vocabulary and scripted outputs, and gateways in front of it."""

from __future__ import annotations

import codecs
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import openai
import pytest
import uvicorn
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inferd_gateway.app import create_app
from inferd_gateway.http_protocol import server_options
from inferd_gateway.settings import Settings

from inferd.v1 import common_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc
from inferd.v1 import inference_pb2 as pb

SPECIAL = {256: "<|im_start|>", 257: "<|im_end|>", 258: "<s>"}
SPECIAL_IDS = {text: token_id for token_id, text in SPECIAL.items()}
EOS, VOCAB, CONTEXT = 257, 300, 4096
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REPLY = "Hello, wörld! 日本 🙂 done."


def token_bytes(token_id: int) -> bytes:
    return SPECIAL[token_id].encode() if token_id in SPECIAL else bytes([token_id & 255])


def encode(prompt: Any) -> list[int]:
    kind = prompt.WhichOneof("kind")
    if kind == "token_ids":
        return list(prompt.token_ids.ids)
    runs = [(prompt.text, True)] if kind == "text" else [(s.text, s.parse_special) for s in prompt.segments.segments]
    ids = [258] if kind == "text" and prompt.add_special_tokens else []
    for text, trusted in runs:
        ids += encode_run(text, trusted)
    return ids


def encode_run(text: str, trusted: bool) -> list[int]:
    if not trusted:
        return list(text.encode())
    ids: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, SPECIAL.values())) + ")", text):
        ids += [SPECIAL_IDS[part]] if part in SPECIAL_IDS else part.encode()
    return ids


def told_prompt(given: Any, ids: list[int]) -> pb.PromptInfo:
    """The prompt as it was read."""
    pieces = [token_bytes(i) for i in ids]
    if given.WhichOneof("kind") == "text":
        at, starts = 0, []
        for token_id in ids:
            if token_id < 256 and token_id & 0xC0 == 0x80:
                starts.append(starts[-1])
            else:
                starts.append(len(given.text.encode()[:at].decode("utf-8", "ignore").encode()))
            at += 0 if token_id == 258 else len(token_bytes(token_id))
        return pb.PromptInfo(text=given.text, starts=starts, token_bytes=pieces)
    text = b"".join(pieces).decode("utf-8", "replace")
    return pb.PromptInfo(text=text, starts=[len(text.encode()[:n]) for n in range(len(ids))], token_bytes=pieces)


def rich_status(
    code: grpc.StatusCode | str,
    message: str,
    reason: str = "",
    field_path: str = "",
    retry_s: float = 0.0,
    metadata: dict[str, str] | None = None,
) -> Any:
    """What the daemon's abort sends."""
    code = grpc.StatusCode[code] if isinstance(code, str) else code
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="inferd", metadata=metadata)] if reason else []
    if field_path:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field_path, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_s:
        delay = duration_pb2.Duration(seconds=int(retry_s), nanos=int(retry_s % 1 * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    return _Status(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


class _Status(grpc.Status):
    def __init__(self, code: grpc.StatusCode, details: str, trailing_metadata: Any) -> None:
        self.code, self.details, self.trailing_metadata = code, details, trailing_metadata


def packed_logprobs(ids: list[int], wanted: pb.LogprobOptions, start: int = 0) -> pb.Logprobs:
    """Position i has log probability -(i+1)/8; alternatives are the next ids of the vocabulary."""
    packed = pb.Logprobs(start_position=start, token_ids=ids)
    for index, token_id in enumerate(ids):
        value = -(index + start + 1) / 8
        packed.values.append(value)
        packed.ranks.append(1)
        packed.token_bytes.append(token_bytes(token_id))
        tops = [(token_id + k) % 256 if k else token_id for k in range(wanted.top_n)] + list(wanted.token_ids)
        packed.top_counts.append(len(tops))
        for k, top in enumerate(tops):
            packed.top_token_ids.append(top)
            packed.top_values.append(value - k if k < 9 else -math.inf)
            packed.top_token_bytes.append(token_bytes(top))
    return packed


@dataclass
class FakeDaemon(inference_pb2_grpc.InferenceServiceServicer, model_pb2_grpc.ModelServiceServicer):
    """Every choice of every generation is `reply`, one byte a token. `gate`, when set, is waited for at each token."""

    reply: str = REPLY
    template: str = TEMPLATE
    etag: str = "1"
    failures: list[Any] = field(default_factory=list)  # one per Generate call; None: none
    break_after: int | None = None  # tokens after which the stream ends in an error
    vanish_after: list[int] = field(default_factory=list)  # the same with UNAVAILABLE, one stream each
    gate: threading.Semaphore | None = None
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    steps: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    serving: bool = True
    abort_reason: int = pb.FINISH_REASON_UNSPECIFIED

    def ListModels(self, request: Any, context: Any) -> Any:
        return model_pb2.ListModelsResponse(models=[self._card()])

    def _card(self) -> Any:
        return model_pb2.ModelCard(
            name="org/toy", aliases=["toy"], created_unix=1_700_000_000, max_context_tokens=CONTEXT
        )

    def GetModelInfo(self, request: Any, context: Any) -> Any:
        if request.if_none_match == self.etag:
            return model_pb2.GetModelInfoResponse(etag=self.etag)
        special = [model_pb2.SpecialToken(text=text, id=token_id) for token_id, text in SPECIAL.items()]
        return model_pb2.GetModelInfoResponse(
            card=self._card(),
            etag=self.etag,
            tokenizer=model_pb2.TokenizerInfo(vocab_size=VOCAB, special_tokens=special, eos_token_ids=[EOS]),
            chat_templates=[model_pb2.ChatTemplate(name="default", source=self.template)] if self.template else [],
            template_variables={"bos_token": "<s>"},
        )

    def Tokenize(self, request: Any, context: Any) -> Any:
        inputs = []
        for prompt in request.inputs:
            ids = encode(prompt)
            strings = [SPECIAL.get(i, f"<0x{i:02X}>") for i in ids] if request.vocabulary_strings else []
            inputs.append(pb.TokenizedInput(token_ids=ids, vocabulary_strings=strings, count=len(ids)))
        return pb.TokenizeResponse(inputs=inputs)

    def Detokenize(self, request: Any, context: Any) -> Any:
        for one in request.inputs:
            self._check_ids(one.ids, context, "inputs[0].ids")
        return pb.DetokenizeResponse(
            texts=[b"".join(map(token_bytes, one.ids)).decode("utf-8", "replace") for one in request.inputs]
        )

    def GenerateMux(self, requests: Any, context: Any) -> Any:
        """This one is an older daemon; tests/gateway/test_mux.py has the new one."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    def Generate(self, request: pb.GenerateRequest, context: Any) -> Iterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining() or 0.0)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            context.abort_with_status(failure)
        prompt = encode(request.prompt)
        self._check(request, prompt, context)
        context.add_callback(self.ended.set)
        messages = list(self._messages(request, prompt))
        if request.stream.mode == pb.STREAM_MODE_FINAL:
            messages = [merged(messages)]
        vanish = self.vanish_after.pop(0) if self.vanish_after else None
        for count, message in enumerate(messages):
            if count == vanish:
                context.abort_with_status(rich_status(grpc.StatusCode.UNAVAILABLE, "it vanished", "ENGINE_DEAD"))
            if count == self.break_after:
                context.abort_with_status(rich_status(grpc.StatusCode.ABORTED, "it broke", "NUMERIC_ERROR"))
            while self.gate is not None and not self.gate.acquire(timeout=0.01):
                if not context.is_active():
                    return
            self.steps += 1
            yield message

    def _check_ids(self, ids: Any, context: Any, path: str) -> None:
        if any(token_id >= VOCAB for token_id in ids):
            message = f"{path} must be below {VOCAB}, got {max(ids)}"
            context.abort_with_status(rich_status(grpc.StatusCode.INVALID_ARGUMENT, message, "INVALID_PARAMETER", path))

    def _check(self, request: pb.GenerateRequest, prompt: list[int], context: Any) -> None:
        """A few of the daemon's own rules, with the paths it reports."""
        sampling, stop = request.sampling, request.stop
        self._check_ids(prompt, context, "prompt.token_ids")
        self._check_ids(list(sampling.logit_bias), context, "sampling.logit_bias")
        rules = {
            "sampling.temperature": not 0 <= sampling.temperature <= 2,
            "sampling.top_p": sampling.HasField("top_p") and not 0 < sampling.top_p <= 1,
            "stop.stop_strings": len(stop.stop_strings) > 64 or "" in stop.stop_strings,
            "num_choices": request.num_choices > 16,
            "output.logprobs.top_n": request.output.logprobs.top_n > 20,
            "prompt": not prompt,
        }
        for path, broken in rules.items():
            if broken:
                status = rich_status(
                    grpc.StatusCode.INVALID_ARGUMENT, f"{path} is out of bounds", "INVALID_PARAMETER", path
                )
                context.abort_with_status(status)
        output = 1 if stop.clamp else max(stop.max_tokens, 1)
        if len(prompt) + output > CONTEXT:
            metadata = {"prompt_tokens": str(len(prompt)), "max_context_tokens": str(CONTEXT)}
            if len(prompt) < CONTEXT:
                metadata["output_tokens"] = str(output)
            status = rich_status(
                grpc.StatusCode.INVALID_ARGUMENT, "too long", "CONTEXT_LENGTH_EXCEEDED", "prompt", metadata=metadata
            )
            context.abort_with_status(status)

    def _messages(self, request: pb.GenerateRequest, prompt: list[int]) -> Iterator[pb.GenerateResponse]:
        choices = max(1, request.num_choices)
        steps, finish = self._steps(request)
        usage = {"prompt_tokens": len(prompt), "cached_prompt_tokens": 3}
        for number, (ids, text) in list(enumerate(steps))[request.resumed_tokens :]:
            message = pb.GenerateResponse()
            if number == request.resumed_tokens:
                message.prompt.CopyFrom(pb.PromptInfo(tokens=len(prompt), cached_tokens=3))
                if request.output.prompt_token_ids:
                    message.prompt.token_ids.extend(prompt)
                if request.output.prompt_text:
                    told = told_prompt(request.prompt, prompt)
                    message.prompt.MergeFrom(told)
                if request.output.HasField("prompt_logprobs"):
                    message.prompt.logprobs.CopyFrom(packed_logprobs(prompt[1:], request.output.prompt_logprobs, 1))
            last = number == len(steps) - 1
            for index in range(choices):
                delta = message.choices.add(index=index, text=text)
                if request.output.token_ids:
                    delta.token_ids.extend(ids)
                if request.output.HasField("logprobs") and ids:
                    delta.logprobs.CopyFrom(packed_logprobs(ids, request.output.logprobs, number))
                if last:
                    delta.finish.CopyFrom(finish)
            if last or request.stream.usage_in_every_message:
                message.usage.CopyFrom(common_pb2.Usage(completion_tokens=(number + 1) * choices, **usage))
            if last:
                message.timing.total_us = 1
            yield message

    def _steps(self, request: pb.GenerateRequest) -> tuple[list[tuple[list[int], str]], pb.Finish]:
        """(token ids, text) per step. Text is held back inside a character and inside a stop string."""
        ids, finish = [*self.reply.encode(), EOS], pb.Finish(reason=pb.FINISH_REASON_EOS, stop_token_id=EOS)
        if request.stop.HasField("max_tokens") and request.stop.max_tokens < len(ids):
            ids, finish = ids[: request.stop.max_tokens], pb.Finish(reason=pb.FINISH_REASON_MAX_TOKENS)
        text = bytes(i for i in ids if i < 256).decode("utf-8", "ignore")
        found = [(text.index(stop), stop) for stop in request.stop.stop_strings if stop in text]
        if found:
            at, stop = min(found)
            text = text[:at]
            ids = ids[: len((text + stop).encode())]
            finish = pb.Finish(reason=pb.FINISH_REASON_STOP_STRING, stop_string=stop)
        for token_id in request.stop.stop_token_ids:
            if token_id in ids:
                ids = ids[: ids.index(token_id) + 1]
                text = bytes(ids[:-1]).decode("utf-8", "ignore")
                finish = pb.Finish(reason=pb.FINISH_REASON_STOP_TOKEN, stop_token_id=token_id)
        if self.abort_reason:
            finish = pb.Finish(reason=self.abort_reason)
        decoder, sent, steps = codecs.getincrementaldecoder("utf-8")(), 0, []
        for token_id in ids:
            piece = decoder.decode(bytes([token_id])) if token_id < 256 else ""
            steps.append(([token_id], text[sent : sent + len(piece)]))
            sent += len(piece)
        return steps or [([], "")], finish


def merged(messages: list[pb.GenerateResponse]) -> pb.GenerateResponse:
    """STREAM_MODE_FINAL: all deltas of a choice as one."""
    whole, choices = pb.GenerateResponse(), {}
    for message in messages:
        for delta in message.choices:
            if delta.index in choices:
                into = choices[delta.index]
                text = into.text + delta.text
                into.MergeFrom(delta)
                into.text = text
            else:
                choices[delta.index] = delta
    whole.choices.extend(choices[index] for index in sorted(choices))
    whole.prompt.CopyFrom(messages[0].prompt)
    whole.usage.CopyFrom(messages[-1].usage)
    whole.timing.CopyFrom(messages[-1].timing)
    return whole


class FakeHealth(health_pb2_grpc.HealthServicer):
    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    def Check(self, request: Any, context: Any) -> Any:
        return health_pb2.HealthCheckResponse(status=1 if self._daemon.serving else 2)

    def Watch(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


@dataclass(frozen=True)
class RunningDaemon:
    servicer: FakeDaemon
    address: str
    server: grpc.Server


def start_daemon(servicer: FakeDaemon, port: int = 0) -> RunningDaemon:
    server = grpc.server(futures.ThreadPoolExecutor(32))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(FakeHealth(servicer), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return RunningDaemon(servicer, f"127.0.0.1:{bound}", server)


@dataclass(frozen=True)
class RunningGateway:
    url: str
    port: int
    app: Any
    client: httpx.Client

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def chat(self, content: Any = "hi", **body: Any) -> httpx.Response:
        return self.post(
            "/v1/chat/completions", {"model": "toy", "messages": [{"role": "user", "content": content}], **body}
        )

    def complete(self, prompt: Any = "abc", **body: Any) -> httpx.Response:
        return self.post("/v1/completions", {"model": "toy", "prompt": prompt, "max_tokens": 64, **body})

    def sdk(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.url + "/v1", **{"api_key": "none", "max_retries": 0, "timeout": 30, **options}
        )


class GatewayServer:
    """uvicorn on a free port in a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        port = self._socket.getsockname()[1]
        app = create_app(settings)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **server_options()))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()
        url = f"http://127.0.0.1:{port}"
        self.running = RunningGateway(url, port, app, httpx.Client(base_url=url, timeout=30, trust_env=False))
        self.running.get("/version")  # the listening socket holds this until the server serves

    def stop(self) -> None:
        self.running.client.close()
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()


def eventually(holds: Callable[[], bool]) -> None:
    """What follows a response, such as its metrics, may come a moment later."""
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[[Callable[[], bool]], None]:
    return eventually


StartGateway = Callable[..., RunningGateway]


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[RunningDaemon]:
    running = start_daemon(FakeDaemon())
    yield running
    running.server.stop(0).wait()


@pytest.fixture
def daemon(shared_daemon: RunningDaemon) -> Iterator[FakeDaemon]:
    """The daemon behind `gateway`, as it was made."""
    servicer = shared_daemon.servicer
    fresh = FakeDaemon()
    servicer.__dict__.update(fresh.__dict__)
    yield servicer
    servicer.__dict__.update(FakeDaemon().__dict__)


@pytest.fixture(scope="session")
def shared_gateway(shared_daemon: RunningDaemon) -> Iterator[RunningGateway]:
    server = GatewayServer(Settings(backend=(shared_daemon.address,)))
    yield server.running
    server.stop()


@pytest.fixture
def gateway(shared_gateway: RunningGateway, daemon: FakeDaemon) -> RunningGateway:
    return shared_gateway


@pytest.fixture
def start_gateway(shared_daemon: RunningDaemon, daemon: FakeDaemon) -> Iterator[StartGateway]:
    """Starts gateways with settings of their own."""
    servers: list[GatewayServer] = []

    def start(**settings: Any) -> RunningGateway:
        servers.append(GatewayServer(Settings(**{"backend": (shared_daemon.address,), **settings})))
        return servers[-1].running

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def make_status() -> Callable[..., Any]:
    return rich_status


@pytest.fixture
def new_daemon() -> Iterator[Callable[..., RunningDaemon]]:
    """Starts daemons of a test's own."""
    started: list[RunningDaemon] = []

    def start(port: int = 0) -> RunningDaemon:
        started.append(start_daemon(FakeDaemon(), port))
        return started[-1]

    yield start
    for running in started:
        running.server.stop(0).wait()
