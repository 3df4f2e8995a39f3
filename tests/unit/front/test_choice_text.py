from __future__ import annotations

from typing import Any

import pytest

from inferd.front.choice_text import ChoiceText
from inferd.front.output import OutputParams
from inferd.request import FinishReason, Request, SamplingParams, StopParams
from inferd.step import TokenLogprobs
from inferd.testing.byte_tokenizer import EOS, byte_tokenizer

TOKENIZER = byte_tokenizer()


def choice(prompt: bytes = b"p", resumed: int = 0, text: bool = True, **stop: Any) -> ChoiceText:
    request = Request(
        key=1,
        request_id="r",
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(),
        stop=StopParams(max_tokens=100, **stop),
        resumed_tokens=resumed,
    )
    return ChoiceText(0, TOKENIZER, request, OutputParams(text=text))


def test_a_delta_never_ends_inside_a_character() -> None:
    text = choice()
    euro = "€".encode()

    assert text.push(list(euro[:2]), [], None).text == ""
    assert text.push([euro[2], ord("a")], [], None).text == "€a"
    assert text.push([euro[0]], [], FinishReason.MAX_TOKENS).text == "\ufffd"


def test_an_end_of_text_token_counts_and_is_not_shown() -> None:
    delta = choice(eos_token_ids=(EOS,)).push([ord("a"), EOS], [], FinishReason.EOS)

    assert delta.text == "a"
    assert delta.token_ids == [ord("a"), EOS]
    assert delta.finish is not None
    assert (delta.finish.stop_token_id, delta.finish.completion_tokens) == (EOS, 2)


@pytest.mark.parametrize(("include_stop", "expected"), [(False, "a"), (True, "ab")])
def test_a_stop_tokens_text_is_shown_when_asked(include_stop: bool, expected: str) -> None:
    text = choice(include_stop=include_stop, stop_token_ids=(ord("b"),))
    assert text.push(list(b"ab"), [], FinishReason.STOP_TOKEN).text == expected


def test_a_stop_string_cuts_tokens_logprobs_and_reason() -> None:
    text = choice(stop_strings=("cd",))
    logprobs = [TokenLogprobs(-1.0, 1, [], [])] * 6
    delta = text.push(list(b"abcdef"), logprobs, FinishReason.MAX_TOKENS)

    assert (delta.text, delta.token_ids, len(delta.logprobs)) == ("ab", list(b"abcd"), 4)
    assert delta.finish is not None
    assert delta.finish.reason is FinishReason.STOP_STRING
    assert (delta.finish.stop_string, delta.finish.completion_tokens) == ("cd", 4)
    assert delta.finish.stop_token_id is None


def test_what_may_become_a_stop_string_is_held_back_and_given_at_the_end() -> None:
    text = choice(stop_strings=("cdx",))

    assert text.push(list(b"abcd"), [], None).text == "ab"
    assert text.push([ord("e")], [], FinishReason.MAX_TOKENS).text == "cde"

    text = choice(stop_strings=("cdx",))
    assert text.push(list(b"abcd"), [], FinishReason.MAX_TOKENS).text == "abcd"


def test_a_stop_string_in_hidden_text_still_ends_the_choice() -> None:
    delta = choice(text=False, stop_strings=("b",)).push(list(b"abc"), [], None)
    assert (delta.text, delta.token_ids) == ("", list(b"ab"))
    assert delta.finish is not None


@pytest.mark.parametrize(("min_tokens", "stopped_after"), [(0, 2), (2, 2), (3, 4), (4, 4)])
def test_a_stop_string_before_min_tokens_is_text(min_tokens: int, stopped_after: int) -> None:
    delta = choice(stop_strings=("b",), min_tokens=min_tokens).push(list(b"abcbe"), [], None)
    assert delta.finish is not None
    assert delta.finish.completion_tokens == stopped_after
    assert delta.text == "abcb"[: stopped_after - 1]


def test_resumed_tokens_were_text_already_and_belong_to_the_scan() -> None:
    text = choice(prompt=b"pab", resumed=2, stop_strings=("bc",))
    delta = text.push(list(b"cd"), [], None)

    assert delta.text == ""
    assert delta.finish is not None
    assert delta.finish.completion_tokens == 1
