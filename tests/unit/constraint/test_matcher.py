"""Matcher: where it starts, where it ends, what it costs to keep grammars."""

from __future__ import annotations

import pytest

from inferd.constraint import matcher as module
from inferd.constraint.grammar import checked_grammar
from inferd.constraint.matcher import Matcher, MatcherFactory
from inferd.constraint.vocabulary import MatchVocabulary
from inferd.messages import Vocabulary
from inferd.request import Constraint, ConstraintKind, ConstraintSpec, StopParams
from inferd.testing.requests import make_request

END, CLOSE, CLOSE_AND_A = 256, 257, 258


@pytest.fixture
def factory() -> MatcherFactory:
    tokens = [bytes([byte]) for byte in range(256)] + [b"<end>", b"</think>", b"nk>\n\na"]
    return MatcherFactory(MatchVocabulary(Vocabulary(tokens, [END], [END, CLOSE]), len(tokens) + 5))


def grammar(factory: MatcherFactory, pattern: str) -> str:
    return checked_grammar(ConstraintSpec(ConstraintKind.REGEX, pattern), factory)


def allowed(matcher: Matcher) -> list[int]:
    mask = matcher.mask()
    return [token for token in range(8 * len(mask)) if mask[token // 8] >> token % 8 & 1]


def advance(matcher: Matcher, text: bytes) -> None:
    for token in text:
        matcher.advance(token)


def test_masks_follow_the_text(factory: MatcherFactory) -> None:
    matcher = factory.matcher(grammar(factory, "ab?"))

    assert allowed(matcher) == [ord("a")]
    matcher.advance(ord("a"))
    assert allowed(matcher) == [ord("b"), END]
    assert not matcher.complete
    matcher.advance(ord("b"))
    assert matcher.complete
    assert allowed(matcher) == [END]


def test_a_wrong_token_fails_it_for_good(factory: MatcherFactory) -> None:
    matcher = factory.matcher(grammar(factory, "ab?"))
    advance(matcher, b"xab")

    assert not matcher.complete
    assert allowed(matcher) == []
    assert allowed(matcher.fork()) == []


def test_without_an_end_only_text_is_allowed(factory: MatcherFactory) -> None:
    matcher = factory.matcher(grammar(factory, "a*"), may_end=False)

    assert allowed(matcher) == [ord("a")]


def test_forks_go_their_own_ways(factory: MatcherFactory) -> None:
    parent = factory.matcher(grammar(factory, "a(b|c)d"))
    parent.advance(ord("a"))
    child = parent.fork()
    advance(parent, b"bd")
    child.advance(ord("c"))

    assert parent.complete
    assert allowed(child) == [ord("d")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([*b"hm </think>"], [ord("a")]),
        ([*b"</", *b"</thi", CLOSE_AND_A], [ord("b"), END]),
        ([CLOSE], [ord("a")]),
        ([*b"</think>", *b"a"], [ord("b"), END]),
    ],
)
def test_it_starts_after_a_text(factory: MatcherFactory, before: list[int], after: list[int]) -> None:
    matcher = factory.matcher(grammar(factory, "ab?"), b"</think>")
    free = allowed(matcher)
    assert END not in free
    assert set(range(256)) | {CLOSE} <= set(free)
    assert not matcher.complete
    for token in before:
        matcher.advance(token)

    assert allowed(matcher) == after


def test_a_fork_before_the_start_waits_too(factory: MatcherFactory) -> None:
    matcher = factory.matcher(grammar(factory, "ab?"), b"</think>")
    advance(matcher, b"x</thi")
    child = matcher.fork()
    advance(child, b"nk>")

    assert allowed(child) == [ord("a")]
    assert ord("x") in allowed(matcher)


def test_what_does_not_match_after_the_start_fails(factory: MatcherFactory) -> None:
    matcher = factory.matcher(grammar(factory, "b"), b"</think>")
    advance(matcher, b"</thi")
    matcher.advance(CLOSE_AND_A)

    assert allowed(matcher) == []


def test_resumed_tokens_are_behind_it(factory: MatcherFactory) -> None:
    constraint = Constraint(grammar(factory, "[ab]{3}"))
    stop = StopParams(max_tokens=9, eos_token_ids=(END,))
    request = make_request(1, b"xab", stop=stop, constraint=constraint, resumed_tokens=2)
    matcher = factory.for_request(request)
    matcher.advance(ord("b"))

    assert matcher.complete


def test_a_vocabulary_without_an_end_has_none(factory: MatcherFactory) -> None:
    """The ids of the mask beyond the model's are never drawn."""
    small = MatcherFactory(MatchVocabulary(Vocabulary([bytes([byte]) for byte in range(256)], [999], []), 250))

    assert [token for token in allowed(small.matcher(grammar(factory, "a|\x02*"))) if token < 250] == [2, ord("a")]


def test_compiled_grammars_are_kept_within_bounds(factory: MatcherFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GRAMMARS", 8)
    grammars = [grammar(factory, f"a{{{count}}}") for count in range(1, 30)]
    for text in grammars:
        factory.matcher(text)
    assert len(factory._compiled) == 8
    assert list(factory._compiled) == grammars[-8:]

    factory.matcher(grammars[-8])
    factory.matcher(grammars[0])
    assert grammars[-8] in factory._compiled
    assert grammars[-7] not in factory._compiled

    monkeypatch.setattr(module, "MAX_GRAMMAR_BYTES", 3 * module.estimated_bytes(grammars[1]))
    factory.matcher(grammars[1])
    assert len(factory._compiled) <= 3
    assert factory._bytes == sum(map(module.estimated_bytes, factory._compiled))
