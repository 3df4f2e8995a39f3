"""Every bad request ends in its typed error: code, reason, field; and the engine never notices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from inferd.testing.fake_daemon import VOCAB_SIZE, DaemonProcess
from inferd.testing.wire import collect, expected_tokens, fails, make_generate
from inferd.v1 import common_pb2
from inferd.v1.inference_pb2 import GenerateRequest
from inferd.v1.inference_pb2_grpc import InferenceServiceStub

INVALID = ("INVALID_ARGUMENT", "INVALID_PARAMETER")
TOO_LONG = ("INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED")


def number(field: str, value: float) -> tuple[str, GenerateRequest]:
    return f"sampling.{field}", make_generate(sampling={field: value})


OUT_OF_RANGE = [
    number(field, value)
    for field, values in {
        "temperature": (-0.1, 2.01, math.nan, math.inf),
        "top_p": (0.0, -1.0, 1.01, math.nan),
        "min_p": (-0.1, 1.1, math.nan),
        "presence_penalty": (-2.1, 2.1, math.nan),
        "frequency_penalty": (-2.1, 2.1, -math.inf),
        "repetition_penalty": (0.0, -1.0, 10.1, math.nan),
    }.items()
    for value in values
]
TOO_MUCH = [
    ("sampling.logit_bias", make_generate(sampling={"logit_bias": {1000: 1.0}})),
    ("sampling.logit_bias", make_generate(sampling={"logit_bias": dict.fromkeys(range(301), 1.0)})),
    ("sampling.logit_bias[5]", make_generate(sampling={"logit_bias": {5: 101.0}})),
    ("sampling.logit_bias[5]", make_generate(sampling={"logit_bias": {5: math.nan}})),
    ("sampling.allowed_token_ids", make_generate(sampling={"allowed_token_ids": [VOCAB_SIZE]})),
    ("sampling.allowed_token_ids", make_generate(sampling={"allowed_token_ids": [1] * 1025})),
    ("sampling.bad_words", make_generate(sampling={"bad_words": ["x"] * 65})),
    ("sampling.bad_words", make_generate(sampling={"bad_words": [" "]})),
    ("sampling.bad_words", make_generate(sampling={"bad_words": ["x" * 600]})),
    ("stop.stop_strings", make_generate(stop={"stop_strings": [f"stop {n}" for n in range(65)]})),
    ("stop.stop_strings", make_generate(stop={"stop_strings": [""]})),
    ("stop.stop_strings", make_generate(stop={"stop_strings": ["é" * 4097]})),
    ("stop.stop_token_ids", make_generate(stop={"stop_token_ids": [VOCAB_SIZE]})),
    ("stop.stop_token_ids", make_generate(stop={"stop_token_ids": [1] * 129})),
    ("stop.min_tokens", make_generate(stop={"min_tokens": 9})),
    ("stop.min_tokens", make_generate(max_tokens=None, stop={"min_tokens": 2**32 - 1})),
    ("stop.time_limit", make_generate(stop={"time_limit": {"seconds": -1}})),
    ("output.logprobs.top_n", make_generate(output={"logprobs": {"top_n": 21}})),
    ("output.logprobs.token_ids", make_generate(output={"logprobs": {"token_ids": [1] * 65}})),
    ("output.prompt_logprobs.top_n", make_generate(output={"prompt_logprobs": {"top_n": 2**32 - 1}})),
    ("output.prompt_logprobs.token_ids", make_generate(output={"prompt_logprobs": {"token_ids": [VOCAB_SIZE]}})),
    ("stream.mode", make_generate(stream={"mode": 999})),
    ("stream.max_delay", make_generate(stream={"max_delay": {"nanos": -5}})),
    ("stream.max_delay", make_generate(stream={"max_delay": {"seconds": 11}})),
    ("truncation", make_generate(truncation=77)),
    ("num_choices", make_generate(num_choices=0)),
    ("num_choices", make_generate(num_choices=17)),
    ("cache.salt", make_generate(cache={"salt": "s" * 129})),
    ("request_id", make_generate(request_id="no spaces")),
    ("request_id", make_generate(request_id="x" * 129)),
    ("queue_timeout", make_generate(queue_timeout={"seconds": -1})),
    ("resumed_tokens", make_generate(resumed_tokens=1)),
]
BAD_PROMPTS = [
    (INVALID, "prompt", {}),
    (INVALID, "prompt", {"text": ""}),
    (INVALID, "prompt", {"token_ids": {}}),
    (INVALID, "prompt", {"segments": {"segments": [{"text": ""}]}}),
    (INVALID, "prompt.token_ids", {"token_ids": {"ids": [1, VOCAB_SIZE]}}),
    (INVALID, "prompt.add_special_tokens", {"token_ids": {"ids": [1]}, "add_special_tokens": True}),
    (TOO_LONG, "prompt", {"text": "a" * 2048}),
    (TOO_LONG, "prompt", {"text": "a" * 100_000}),
]


@pytest.mark.parametrize(("field", "request_"), OUT_OF_RANGE + TOO_MUCH)
def test_a_bad_field_is_named(stub: InferenceServiceStub, field: str, request_: GenerateRequest) -> None:
    failure = fails(stub.Generate(request_))

    assert (failure.code, failure.reason) == INVALID
    assert failure.fields == (field,)
    assert field in failure.message
    assert failure.request_id


@pytest.mark.parametrize(("kind", "field", "prompt"), BAD_PROMPTS)
def test_a_bad_prompt_is_refused(
    stub: InferenceServiceStub, kind: tuple[str, str], field: str, prompt: dict[str, Any]
) -> None:
    request = make_generate()
    request.prompt.CopyFrom(ParseDict(prompt, common_pb2.Prompt()))
    failure = fails(stub.Generate(request))

    assert (failure.code, failure.reason) == kind
    assert failure.fields == (field,)


def test_an_error_tells_bound_and_value(stub: InferenceServiceStub) -> None:
    assert fails(stub.Generate(make_generate(sampling={"temperature": 2.5}))).message == (
        "sampling.temperature must be between 0 and 2, got 2.5"
    )
    failure = fails(stub.Generate(make_generate("a" * 3000)))
    assert failure.metadata == {"prompt_tokens": "3000", "max_context_tokens": "2048"}


def test_the_tokens_that_are_asked_for_fit_beside_the_prompt(stub: InferenceServiceStub) -> None:
    for prompt, max_tokens, field in (("a", 2049, "stop.max_tokens"), ("a", 2048, "stop.max_tokens"),
                                      ("a" * 2040, 9, "prompt")):  # fmt: skip
        failure = fails(stub.Generate(make_generate(prompt, max_tokens=max_tokens)))
        assert (failure.code, failure.reason) == TOO_LONG
        assert failure.fields == (field,)

    for max_tokens, clamp in ((8, False), (None, False), (9, True), (4000, True)):
        request = make_generate("a" * 2040, max_tokens=max_tokens, stop={"ignore_eos": True, "clamp": clamp})
        assert len(collect(stub.Generate(request))[0].token_ids) == 8


def test_what_does_not_fit_is_told_in_numbers(stub: InferenceServiceStub) -> None:
    failure = fails(stub.Generate(make_generate("a" * 2040, max_tokens=9)))
    assert failure.metadata == {"prompt_tokens": "2040", "output_tokens": "9", "max_context_tokens": "2048"}


def test_a_wish_for_tokens_leaves_half_of_the_context_to_a_truncated_prompt(stub: InferenceServiceStub) -> None:
    for wished, kept in ((100, 1948), (32_000, 1024)):
        stop = {"clamp": True, "ignore_eos": True}
        request = make_generate(
            "a" * 3000, max_tokens=wished, stop=stop, truncation=common_pb2.TRUNCATION_KEEP_END,
            stream={"mode": "STREAM_MODE_FINAL"},
        )  # fmt: skip
        (message,) = stub.Generate(request)
        assert message.prompt.tokens == kept
        assert message.usage.completion_tokens == 2048 - kept


def test_every_bad_token_id_is_named(stub: InferenceServiceStub) -> None:
    failure = fails(stub.Generate(make_generate(sampling={"logit_bias": {1000: 1.0, 5: 1.0, 2000: -1.0}})))
    assert "1000" in failure.message
    assert "2000" in failure.message


def test_truncation_leaves_room_for_the_tokens_that_are_asked_for(stub: InferenceServiceStub) -> None:
    request = make_generate("a" * 3000, max_tokens=100, truncation=common_pb2.TRUNCATION_KEEP_END)
    messages = list(stub.Generate(request))
    assert messages[0].prompt.tokens == 1948
    assert messages[0].prompt.truncated


def test_unknown_model_and_alias(stub: InferenceServiceStub) -> None:
    failure = fails(stub.Generate(make_generate(model="../etc/passwd")))
    assert (failure.code, failure.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert "fake" in failure.message

    assert collect(stub.Generate(make_generate(model="alias")))


def test_a_duplicate_of_a_running_request_is_refused(stub: InferenceServiceStub) -> None:
    running = stub.Generate(make_generate(max_tokens=2000, request_id="twin"))
    next(running)
    try:
        failure = fails(stub.Generate(make_generate(request_id="twin")))
    finally:
        running.cancel()
    assert (failure.code, failure.reason) == ("ALREADY_EXISTS", "DUPLICATE_REQUEST")


RAW_METHOD = "/inferd.v1.InferenceService/Generate"


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"\xff\xff\xff", ()),  # no message at all
        (b"\x12\x04\x0a\x02\xc3\x28", ()),  # a string that is no UTF-8
        (make_generate().SerializeToString() + b"\xfa\x3e\x01\x00", ()),  # field 1007
        (b"\x12\x07\x0a\x01a\xfa\x3e\x01\x00", ("prompt",)),  # field 1007 of the prompt
    ],
)
def test_bytes_that_are_no_request(channel: grpc.Channel, data: bytes, field: tuple[str, ...]) -> None:
    failure = fails(channel.unary_stream(RAW_METHOD, None, None)(data))
    assert (failure.code, failure.reason, failure.fields) == (*INVALID, field)


def test_a_message_over_the_limit_is_the_librarys_error(stub: InferenceServiceStub) -> None:
    failure = fails(stub.Generate(make_generate("a" * (4 * 1024 * 1024))))
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "")


def test_two_request_ids_in_the_metadata_are_refused(stub: InferenceServiceStub) -> None:
    failure = fails(stub.Generate(make_generate(), metadata=[("x-request-id", "a"), ("x-request-id", "b")]))
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", ("x-request-id",))


@pytest.mark.parametrize("shape", ["unary_unary", "unary_stream", "stream_stream"])
def test_a_method_that_the_contract_lacks_is_unimplemented(channel: grpc.Channel, shape: str) -> None:
    """Every one that it has is called in test_reflection.py."""
    call: Callable[..., object] = getattr(channel, shape)("/inferd.v1.InferenceService/Dream")
    request = b"" if shape.startswith("unary") else iter([b""])
    with pytest.raises(grpc.RpcError) as refused:
        list(call(request, timeout=5))  # type: ignore[call-overload]
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_engine_never_noticed(stub: InferenceServiceStub, daemon: DaemonProcess) -> None:
    for _, request in OUT_OF_RANGE + TOO_MUCH:
        fails(stub.Generate(request))

    assert daemon.wait_metrics(requests_running=0, kv_cache_usage_ratio=0)["inferd_engine_restarts_total"] == 0
    assert collect(stub.Generate(make_generate()))[0].token_ids == expected_tokens(8)
