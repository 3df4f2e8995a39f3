"""How inputs of Embed and Score are cut, split and scored."""

from __future__ import annotations

import math

import pytest

from inferd.errors import ContextLengthExceeded, InvalidParameter
from inferd.server.inputs import Room, cut_pair
from inferd.server.score_tokens import cut_context, label_scores, split_item
from inferd.step import TokenLogprobs
from inferd.testing.byte_tokenizer import byte_tokenizer
from inferd.testing.tiny_bert import WORDS, tiny_tokenizer
from inferd.text.tokenizer import Tokenizer
from inferd.v1 import common_pb2, inference_pb2

START, END = common_pb2.TRUNCATION_KEEP_START, common_pb2.TRUNCATION_KEEP_END
CLS, SEP = (2,), (3,)


@pytest.mark.parametrize(
    ("ids", "truncation", "kept"),
    [
        ([2, 10, 11, 12, 13, 3], START, [2, 10, 11, 3]),
        ([2, 10, 11, 12, 13, 3], END, [2, 12, 13, 3]),
        ([10, 11, 12, 13, 14], START, [10, 11, 12, 13]),
        ([10, 11, 12, 13, 14], END, [11, 12, 13, 14]),
        ([2, 10, 11, 12, 13], END, [2, 11, 12, 13]),
        ([2, 10, 11, 3], START, [2, 10, 11, 3]),
    ],
)
def test_special_tokens_survive_a_cut(ids: list[int], truncation: int, kept: list[int]) -> None:
    assert Room(4, truncation).cut(ids, CLS, SEP) == kept


def test_a_cut_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        Room(4, common_pb2.TRUNCATION_UNSPECIFIED).cut([7] * 5, (), ())
    assert caught.value.metadata == {"prompt_tokens": "5", "max_context_tokens": "4"}
    with pytest.raises(InvalidParameter, match="special tokens"):
        Room(2, START).cut([2, 7, 7, 3], CLS, SEP)


class PairTokenizer:
    """What cut_pair needs of a BERT tokenizer."""

    prefix, suffix = CLS, SEP


@pytest.mark.parametrize("limit", range(4, 40))
@pytest.mark.parametrize(("first", "second"), [(3, 30), (30, 3), (16, 16), (15, 17), (17, 15), (1, 1)])
def test_pairs_are_cut_as_transformers_cuts_them(first: int, second: int, limit: int) -> None:
    theirs = tiny_tokenizer()
    words = WORDS[2:]
    texts = [" ".join(words[i % len(words)] for i in range(count)) for count in (first, second)]
    expected = theirs(*texts, truncation="longest_first", max_length=limit, return_token_type_ids=True)
    bare = [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]
    tokenizer: Tokenizer = PairTokenizer()  # type: ignore[assignment]  # all that is used of it
    ids, start = cut_pair(bare[0], bare[1], Room(limit, START), tokenizer)
    assert ids == expected["input_ids"]
    assert [0] * start + [1] * (len(ids) - start) == expected["token_type_ids"]


def item(context: str | list[int], continuation: str | list[int]) -> inference_pb2.ContinuationTask.Item:
    prompts = [
        common_pb2.Prompt(text=part) if isinstance(part, str) else common_pb2.Prompt(token_ids={"ids": part})
        for part in (context, continuation)
    ]
    return inference_pb2.ContinuationTask.Item(context=prompts[0], continuation=prompts[1])


def test_texts_are_split_where_the_tokens_part() -> None:
    tokenizer = byte_tokenizer()
    assert split_item(item("ab", "c"), tokenizer) == (list(b"abc"), 1)
    assert split_item(item([1, 2], [3, 4]), tokenizer) == ([1, 2, 3, 4], 2)
    assert split_item(item("ab", [300]), tokenizer) == ([*b"ab", 300], 1)
    # The end of one control token in the context, the rest in the continuation: the whole token is the continuation's.
    assert split_item(item("a<bo", "s>b"), tokenizer) == ([ord("a"), 256, ord("b")], 2)


def test_a_token_that_swallows_the_whole_context_leaves_nothing_to_condition_on() -> None:
    with pytest.raises(InvalidParameter, match="context token"):
        split_item(item("<bo", "s>b"), byte_tokenizer())


def test_only_the_context_is_cut() -> None:
    assert cut_context([1, 2, 3, 4, 5], 2, END, 3) == [3, 4, 5]
    with pytest.raises(ContextLengthExceeded):
        cut_context([1, 2, 3, 4, 5], 3, END, 3)


def test_label_probabilities() -> None:
    entry = TokenLogprobs(-0.1, 1, [9, 4, 7], [math.log(0.5), math.log(0.3), math.log(0.1)])
    assert label_scores(entry, [4, 9, 4], softmax=False) == pytest.approx([0.3, 0.5, 0.3])
    assert label_scores(entry, [4, 7], softmax=True) == pytest.approx([0.75, 0.25])
    far = TokenLogprobs(-0.1, 1, [1, 2], [-2000.0, -2001.0])
    assert sum(label_scores(far, [1, 2], softmax=True)) == pytest.approx(1.0)
