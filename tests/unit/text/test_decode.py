"""Decoded text tells where each of its tokens starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.text.decode import decode_with_starts
from inferd.text.tokenizer import Tokenizer

Ours = dict[str, Tokenizer]
NAMES = ["byte-level", "gguf-bpe", "legacy", "gguf-spm", "first", "unigram"]


@pytest.mark.parametrize("name", NAMES)
@given(ids=st.lists(st.integers(0, 500), max_size=30))
def test_any_ids_are_the_decoded_text_and_starts_in_it(name: str, ids: list[int], ours: Ours) -> None:
    """Random ids: mostly bytes that are no UTF-8. An unfinished end is not told yet."""
    tokenizer = ours[name]
    text, starts = decode_with_starts(tokenizer, ids)
    whole = tokenizer.decode(ids)
    assert whole in (text, text + "\ufffd")
    assert len(starts) == len(ids)
    assert starts == sorted(starts)
    boundaries = {len(text[:index].encode()) for index in range(len(text) + 1)}
    assert set(starts) <= boundaries


@pytest.mark.parametrize("name", ["byte-level", "gguf-bpe", "gguf-spm"])
def test_starts_are_those_of_the_encoder(name: str, ours: Ours) -> None:
    tokenizer = ours[name]
    text = "the cat 日本 été🙂x"
    ids, starts, _ = tokenizer.encode_with_offsets(text, add_special_tokens=False)
    decoded, found = decode_with_starts(tokenizer, ids)
    assert decoded == text
    if name == "byte-level":
        assert found == starts


def test_control_tokens_are_part_of_the_text(ours: Ours) -> None:
    tokenizer = ours["byte-level"]
    ids = tokenizer.encode("<|im_start|>x<|im_end|>", add_special_tokens=False)
    text, starts = decode_with_starts(tokenizer, ids)
    assert text == "<|im_start|>x<|im_end|>"
    assert starts == [0, 12, 13]


def test_vocabulary_strings_are_the_files_own(ours: Ours) -> None:
    tokenizer = ours["byte-level"]
    ids = tokenizer.encode("é <|im_end|>", add_special_tokens=False)
    strings = [tokenizer.vocabulary_string(token_id) for token_id in ids]
    assert strings[-1] == "<|im_end|>"
    assert "".join(strings[:-1]) == "Ã©Ġ"
    assert ours["gguf-spm"].vocabulary_string(ours["gguf-spm"].encode("the", False)[0]).startswith("▁")
    assert tokenizer.vocabulary_string(10**6) == ""
