"""Random schemas, regexes and grammars: whatever is accepted, every text that is generated under it is valid, as judged
by libraries that know nothing of ours."""

from __future__ import annotations

import random

import pytest

from inferd.constraint.grammar import checked_grammar
from inferd.constraint.matcher import MatcherFactory
from inferd.constraint.vocabulary import MatchVocabulary
from inferd.errors import InvalidConstraint
from inferd.messages import Vocabulary
from inferd.request import ConstraintKind, ConstraintSpec
from inferd.testing.random_constraints import random_case

END = 256
WORDS = [
    '{"',
    '": ',
    '", "',
    "true",
    "null",
    "123",
    "-1",
    "0.5",
    "abc",
    "\\u00",
    "2020-01-",
    "é",
    "\n  ",
    '"}',
    "],",
    "yy",
]
CLOSING = {END, *b'"}]'}
MAX_TOKENS = 400
KINDS = {"json_schema": ConstraintKind.JSON_SCHEMA, "regex": ConstraintKind.REGEX, "ebnf": ConstraintKind.EBNF}


def vocabulary() -> MatchVocabulary:
    """All bytes, an end, and tokens that cross the boundaries of what grammars are made of."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"<end>"] + [word.encode() for word in WORDS]
    return MatchVocabulary(Vocabulary(tokens, [END], [END]), len(tokens) + 3)


@pytest.fixture(scope="module")
def factory() -> MatcherFactory:
    return MatcherFactory(vocabulary())


def generate(factory: MatcherFactory, grammar: str, choose: random.Random) -> str | None:
    """A random text under the grammar; None when it did not end in time. Ends, short words and quotes are likelier."""
    matcher = factory.matcher(grammar)
    text = b""
    for count in range(MAX_TOKENS):
        if matcher.complete:
            return text.decode()
        mask = matcher.mask()
        allowed = [token for token in range(8 * len(mask)) if mask[token // 8] >> token % 8 & 1]
        assert allowed, f"dead end after {text!r} in {grammar}"
        closing = [token for token in allowed if token in CLOSING]
        token = choose.choice(closing if closing and choose.random() < 0.2 + count / 100 else allowed)
        if token == END:
            return text.decode()
        matcher.advance(token)
        text += factory.vocabulary.token_bytes[token]
    return None


def run(factory: MatcherFactory, seeds: range) -> dict[str, int]:
    counts = {"accepted": 0, "refused": 0, "finished": 0}
    for seed in seeds:
        choose = random.Random(seed)
        case = random_case(seed)
        ((kind, text),) = case.fields.items()
        try:
            grammar = checked_grammar(ConstraintSpec(KINDS[kind], text), factory)
        except InvalidConstraint:
            counts["refused"] += 1
            continue
        counts["accepted"] += 1
        for _ in range(3):
            output = generate(factory, grammar, choose)
            if output is not None:
                counts["finished"] += 1
                case.check(output)
    return counts


def test_outputs_of_accepted_constraints_are_valid(factory: MatcherFactory) -> None:
    counts = run(factory, range(100))

    assert counts["accepted"] > 60
    assert counts["finished"] > 2 * counts["accepted"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_outputs_of_two_thousand_constraints_are_valid(factory: MatcherFactory) -> None:
    counts = run(factory, range(1000, 3000))

    assert counts["accepted"] > 1200
    assert counts["finished"] > 2 * counts["accepted"]
