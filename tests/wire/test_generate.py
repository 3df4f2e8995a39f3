"""Generate over the wire: the stream's grammar, and that its content is what the fake model computes."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from inferd.request import FinishReason
from inferd.testing.fake_daemon import VOCAB_SIZE, DaemonProcess, fake_config
from inferd.testing.wire import as_text, collect, expected_tokens, fails, make_generate
from inferd.v1 import common_pb2, inference_pb2
from inferd.v1.inference_pb2_grpc import InferenceServiceStub

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def test_deltas_are_the_models_tokens_and_their_text(stub: InferenceServiceStub) -> None:
    choice = collect(stub.Generate(make_generate(max_tokens=20)))[0]

    assert choice.token_ids == expected_tokens(20)
    assert choice.text == as_text(expected_tokens(20))
    assert choice.reason is FinishReason.MAX_TOKENS
    assert choice.finish is not None
    assert choice.finish.completion_tokens == 20


def test_first_message_tells_of_the_prompt(stub: InferenceServiceStub) -> None:
    first, *_ = stub.Generate(make_generate("abc", request_id="mine", output={"prompt_token_ids": True}))

    assert (first.request_id, first.prompt.tokens, first.prompt.truncated) == ("mine", 3, False)
    assert list(first.prompt.token_ids) == list(b"abc")


def test_final_mode_is_one_message_with_the_same_content(stub: InferenceServiceStub) -> None:
    final = list(stub.Generate(make_generate(stream={"mode": inference_pb2.STREAM_MODE_FINAL})))

    assert len(final) == 1
    assert collect(final)[0].text == collect(stub.Generate(make_generate()))[0].text


def test_choices_share_a_prompt_and_differ(stub: InferenceServiceStub) -> None:
    choices = collect(stub.Generate(make_generate(num_choices=3, max_tokens=6)))

    assert {index: choice.token_ids for index, choice in choices.items()} == {
        index: expected_tokens(6, choice=index) for index in range(3)
    }


def test_sixty_four_at_once(stub: InferenceServiceStub) -> None:
    def one(seed: int) -> list[int]:
        return collect(stub.Generate(make_generate(seed=seed, max_tokens=16)))[0].token_ids

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(one, range(64))) == [expected_tokens(16, seed=seed) for seed in range(64)]


def test_logprobs_are_aligned_with_token_ids(stub: InferenceServiceStub) -> None:
    options = {"logprobs": {"top_n": 2, "token_ids": [7], "token_bytes": True}}
    choice = collect(stub.Generate(make_generate(output=options)))[0]

    for delta in choice.deltas:
        logprobs, ids = delta.logprobs, list(delta.token_ids)
        assert list(logprobs.token_ids) == ids
        assert list(logprobs.values) == [-(token % 10) - 1.0 for token in ids]
        assert list(logprobs.ranks) == [1] * len(ids)
        assert list(logprobs.token_bytes) == [bytes([token]) for token in ids]
        assert list(logprobs.top_counts) == [3] * len(ids)
        assert list(logprobs.top_token_ids) == [top for t in ids for top in (t, (t + 1) % VOCAB_SIZE, 7)]
        assert list(logprobs.top_values) == [-1.0, -2.0, -100.0] * len(ids)
        assert list(logprobs.top_token_bytes) == [bytes([top]) for top in logprobs.top_token_ids]


def test_prompt_logprobs_start_at_the_second_token(stub: InferenceServiceStub) -> None:
    request = make_generate("abcd", max_tokens=0, output={"prompt_logprobs": {"top_n": 1}})
    (message,) = stub.Generate(request)

    assert message.prompt.logprobs.start_position == 1
    assert list(message.prompt.logprobs.token_ids) == list(b"bcd")
    assert list(message.prompt.logprobs.values) == [-(token % 10) - 1.0 for token in b"bcd"]
    assert message.usage.completion_tokens == 0


@pytest.mark.parametrize("include_stop", [False, True])
def test_stop_string_across_tokens_ends_the_choice(stub: InferenceServiceStub, include_stop: bool) -> None:
    text = as_text(expected_tokens(20))
    stop = as_text(expected_tokens(9)[6:])
    request = make_generate(max_tokens=200, stop={"stop_strings": [stop, "never seen"], "include_stop": include_stop})
    choice = collect(stub.Generate(request))[0]

    assert choice.text == text[: text.index(stop) + (3 if include_stop else 0)]
    assert choice.reason is FinishReason.STOP_STRING
    assert choice.finish is not None
    assert choice.finish.stop_string == stop
    assert choice.finish.completion_tokens == 9
    assert choice.token_ids == expected_tokens(9)


def test_min_tokens_lets_a_stop_string_pass(stub: InferenceServiceStub) -> None:
    text, stop = as_text(expected_tokens(12)), as_text(expected_tokens(4)[2:])
    request = make_generate(max_tokens=12, stop={"stop_strings": [stop], "min_tokens": 10})

    assert collect(stub.Generate(request))[0].text == text


def test_text_and_token_ids_can_be_left_out(stub: InferenceServiceStub) -> None:
    no_text = collect(stub.Generate(make_generate(output={"text": False})))[0]
    no_ids = collect(stub.Generate(make_generate(output={"token_ids": False})))[0]

    assert (no_text.text, no_text.token_ids) == ("", expected_tokens(8))
    assert (no_ids.text, no_ids.token_ids) == (as_text(expected_tokens(8)), [])


def test_max_delay_shares_messages(stub: InferenceServiceStub) -> None:
    request = make_generate(max_tokens=100)
    request.stream.max_delay.FromSeconds(5)
    messages = list(stub.Generate(request))

    assert len(messages) == 1  # all hundred tokens are there long before the delay is over
    assert collect(messages)[0].token_ids == expected_tokens(100)


def test_usage_in_every_message_grows(stub: InferenceServiceStub) -> None:
    messages = list(stub.Generate(make_generate(stream={"usage_in_every_message": True})))
    counts = [message.usage.completion_tokens for message in messages]

    assert all(message.HasField("usage") for message in messages)
    assert counts == sorted(counts)
    assert counts[-1] == 8


def test_seeds_decide(stub: InferenceServiceStub) -> None:
    def text(seed: int | None) -> str:
        request = make_generate(max_tokens=12)
        request.sampling.ClearField("seed") if seed is None else None
        return collect(stub.Generate(request))[0].text

    assert text(1) == text(1)
    assert text(None) != text(None)


def test_resumed_tokens_count_as_output(stub: InferenceServiceStub) -> None:
    whole = expected_tokens(10)
    request = make_generate(max_tokens=10, resumed_tokens=4)
    request.prompt.CopyFrom(common_pb2.Prompt(token_ids={"ids": [*b"hello", *whole[:4]]}))

    assert collect(stub.Generate(request))[0].token_ids == whole[4:]


def test_a_stop_string_that_began_before_the_break_is_found(stub: InferenceServiceStub) -> None:
    whole = expected_tokens(10)
    stop = as_text(whole[3:6])
    request = make_generate(max_tokens=10, resumed_tokens=5, stop={"stop_strings": [stop]})
    request.prompt.CopyFrom(common_pb2.Prompt(token_ids={"ids": [*b"hello", *whole[:5]]}))
    choice = collect(stub.Generate(request))[0]

    assert (choice.text, choice.reason) == ("", FinishReason.STOP_STRING)


def test_truncation_keeps_the_asked_end(stub: InferenceServiceStub) -> None:
    request = make_generate("a" * 3000 + "b", truncation=common_pb2.TRUNCATION_KEEP_END, max_tokens=1)
    request.output.prompt_token_ids = True
    first, *_ = stub.Generate(request)

    assert first.prompt.truncated
    assert (len(first.prompt.token_ids), first.prompt.token_ids[-1]) == (2047, ord("b"))


def test_request_ids_come_back(stub: InferenceServiceStub) -> None:
    call = stub.Generate(make_generate(), metadata=[("x-request-id", "from-metadata")])
    first, *_ = call
    assert first.request_id == "from-metadata"
    assert ("x-request-id", "from-metadata") in [tuple(item) for item in call.initial_metadata()]

    both = stub.Generate(make_generate(request_id="from-body"), metadata=[("x-request-id", "from-metadata")])
    assert next(iter(both)).request_id == "from-body"
    assert UUID7.fullmatch(next(iter(stub.Generate(make_generate()))).request_id)


def test_usage_comes_as_a_trailer_too(stub: InferenceServiceStub) -> None:
    call = stub.Generate(make_generate("abc", max_tokens=5))
    collect(call)
    trailers = {key: value for key, value in call.trailing_metadata()}
    usage = common_pb2.Usage.FromString(trailers["x-inferd-usage-bin"])

    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 5)


def test_timing_adds_up(stub: InferenceServiceStub) -> None:
    *_, last = stub.Generate(make_generate(max_tokens=10))
    timing = last.timing

    assert timing.decode_us > 9_000  # nine steps of at least a millisecond
    assert timing.queue_us + timing.prefill_us + timing.decode_us <= timing.total_us


def test_prefill_progress_comes_before_the_first_token(stub: InferenceServiceStub) -> None:
    prompt = "p" * 1900  # four steps of 512 tokens
    request = make_generate(prompt, max_tokens=3, stream={"prefill_progress": True}, cache={"no_read": True})
    messages = list(stub.Generate(request))
    progress = [message for message in messages if message.prefilled_tokens]
    assert [message.prefilled_tokens for message in progress] == sorted(
        {message.prefilled_tokens for message in progress}
    )
    assert progress == messages[: len(progress)]
    assert 1 <= len(progress) <= 3
    assert progress[-1].prefilled_tokens < 1900
    assert messages[0].request_id
    assert not any(message.choices or message.HasField("prompt") for message in progress)
    rest = messages[len(progress) :]
    assert rest[0].prompt.tokens == 1900
    plain = list(stub.Generate(make_generate(prompt, max_tokens=3, cache={"no_read": True})))
    assert collect(plain)[0].token_ids == [token for message in rest for token in message.choices[0].token_ids]
    assert not any(message.prefilled_tokens for message in plain)


def test_prefill_progress_needs_more_than_one_message(stub: InferenceServiceStub) -> None:
    mode = inference_pb2.STREAM_MODE_FINAL
    failure = fails(stub.Generate(make_generate(stream={"prefill_progress": True, "mode": mode})))
    assert failure.fields == ("stream.prefill_progress",)


def test_a_daemons_seed_repeats_what_it_drew() -> None:
    def outputs() -> list[list[int]]:
        with DaemonProcess(fake_config(server={"seed": 7})) as daemon:
            daemon.wait_ready()
            with grpc.insecure_channel(daemon.address) as channel:
                own = InferenceServiceStub(channel)
                requests = [inference_pb2.GenerateRequest(prompt={"text": "a"}, stop={"max_tokens": 9})] * 3
                return [collect(own.Generate(request))[0].token_ids for request in requests]

    first = outputs()
    assert first == outputs()
    assert len({tuple(tokens) for tokens in first}) == 3


def prompt_info(stub: InferenceServiceStub, **fields: Any) -> inference_pb2.PromptInfo:
    request = make_generate(max_tokens=1, output={"prompt_text": True}, **fields)
    return next(iter(stub.Generate(request))).prompt


def test_the_prompt_is_told_as_it_was_read(stub: InferenceServiceStub) -> None:
    info = prompt_info(stub, prompt="aé")
    assert (info.text, list(info.starts)) == ("aé", [0, 1, 1])
    assert list(info.token_bytes) == [b"a", b"\xc3", b"\xa9"]


def test_a_truncated_prompt_is_told_from_where_it_was_read(stub: InferenceServiceStub) -> None:
    text = "b" * 3000 + "a" * 2047
    info = prompt_info(stub, prompt=text, truncation=common_pb2.TRUNCATION_KEEP_END)
    assert (info.text, info.truncated) == ("a" * 2047, True)
    assert list(info.starts) == list(range(2047))


@pytest.mark.parametrize(
    ("ids", "text", "starts"),
    [
        ([0xA9, *b"a"], "\ufffda", [0, 3]),  # begins inside a character
        ([0xC3, *b"a"], "\ufffda", [0, 3]),  # a character that is never finished
        ([*"日a".encode()], "日a", [0, 0, 0, 3]),
        ([*b"a", 0xE6, 0x97], "a", [0, 1, 1]),  # the first delta may finish it
    ],
)
def test_a_prompt_of_ids_is_told_as_text(
    stub: InferenceServiceStub, ids: list[int], text: str, starts: list[int]
) -> None:
    request = make_generate(max_tokens=1, output={"prompt_text": True})
    request.prompt.CopyFrom(common_pb2.Prompt(token_ids={"ids": ids}))
    info = next(iter(stub.Generate(request))).prompt
    assert (info.text, list(info.starts)) == (text, starts)
