"""Streamed text equals the text of all ids, wherever it is cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.text.detokenizer import IncrementalDetokenizer
from inferd.text.tokenizer import Tokenizer

Ours = dict[str, Tokenizer]
NAMES = ["byte-level", "gguf-bpe", "legacy", "gguf-spm", "first", "unigram"]


def chunks(draw: st.DataObject, ids: list[int]) -> list[list[int]]:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    return [ids[start:end] for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), skip=st.booleans())
def test_concatenation_is_decode(name: str, data: st.DataObject, skip: bool, ours: Ours) -> None:
    """Random ids: mostly bytes that are no UTF-8."""
    tokenizer = ours[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=30))
    detokenizer = IncrementalDetokenizer(tokenizer, skip)
    pieces = [detokenizer.push(chunk) for chunk in chunks(data, ids)]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), text=st.text(alphabet="日本👩\u200d👧é the\u0301\n<", max_size=30))
def test_text_comes_whole_characters_only(name: str, data: st.DataObject, text: str, ours: Ours) -> None:
    tokenizer = ours[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    if "\ufffd" in tokenizer.decode(ids) or tokenizer.decode(ids) != text:
        return  # this vocabulary cannot write the text
    detokenizer = IncrementalDetokenizer(tokenizer, False)
    pieces = [detokenizer.push([index]) for index in ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), skip=st.booleans())
def test_after_a_prompt(name: str, data: st.DataObject, skip: bool, ours: Ours) -> None:
    """What follows a prompt is what the whole text has more than the prompt's finished characters."""
    tokenizer = ours[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=20))
    cut = data.draw(st.integers(0, len(ids)))
    before = IncrementalDetokenizer(tokenizer, skip)
    shown = before.push(ids[:cut])
    after = IncrementalDetokenizer(tokenizer, skip, prompt_tail=ids[:cut])
    assert shown + after.push(ids[cut:]) + after.flush() == tokenizer.decode(ids, skip)


def test_leading_space_of_a_continuation_is_kept(ours: Ours) -> None:
    tokenizer = ours["gguf-spm"]
    (the,) = tokenizer.encode("the", add_special_tokens=False)
    assert IncrementalDetokenizer(tokenizer, True).push([the]) == "the"
    assert IncrementalDetokenizer(tokenizer, True, prompt_tail=[the]).push([the]) == " the"
    assert IncrementalDetokenizer(tokenizer, True, prompt_tail=[1]).push([the]) == "the"
    assert IncrementalDetokenizer(tokenizer, False, prompt_tail=[1]).push([the]) == " the"


def test_invalid_bytes_wait_only_while_they_can_complete(ours: Ours) -> None:
    tokenizer = ours["gguf-spm"]

    def byte(value: int) -> int:
        return 3 + value

    detokenizer = IncrementalDetokenizer(tokenizer, False)
    assert [detokenizer.push([byte(value)]) for value in "😀".encode()] == ["", "", "", "😀"]
    assert detokenizer.push([byte(0xF0), byte(0x9F)]) == ""
    assert detokenizer.push([byte(ord("x"))]) == "\ufffdx"
    assert detokenizer.push([byte(0xFF)]) == "\ufffd"
    assert detokenizer.push([byte(0xE2)]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_cost_does_not_grow_with_the_text(ours: Ours) -> None:
    tokenizer = ours["byte-level"]
    ids = tokenizer.encode("the cat sat 日本 " * 2000)
    detokenizer = IncrementalDetokenizer(tokenizer, True)

    def cost() -> float:
        began = time.process_time()
        for index in ids:
            detokenizer.push([index])
        return time.process_time() - began

    first = min(cost(), cost())
    for _ in range(8):
        cost()
    assert min(cost(), cost()) < 2.5 * first + 0.01
