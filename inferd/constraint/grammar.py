"""What a caller asked for -> a grammar of the matching library, checked. Runs in a process of its own: a hostile schema
costs that process, at most."""

from __future__ import annotations

import random

from inferd.constraint.ebnf import ebnf_to_lark
from inferd.constraint.lark import HEADER, json_text, literal, regex
from inferd.constraint.matcher import Matcher, MatcherFactory
from inferd.constraint.schema import checked_schema, parse_json
from inferd.constraint.structural_tag import structural_tag_to_lark
from inferd.constraint.vocabulary import MatchVocabulary
from inferd.errors import InvalidConstraint
from inferd.request import ConstraintKind, ConstraintSpec

# Texts that are begun tell whether the grammar is too complex to follow.
PROBES = 3
PROBE_TOKENS = 24


def checked_grammar(spec: ConstraintSpec, factory: MatcherFactory) -> str:
    """The grammar of a constraint that can be followed. Raises InvalidConstraint."""
    grammar = grammar_of(spec, factory.vocabulary)
    for seed in range(PROBES):
        probe(factory.matcher(grammar), factory.vocabulary, random.Random(seed))
    return grammar


def probe(matcher: Matcher, vocabulary: MatchVocabulary, choose: random.Random) -> None:
    """Begin a text. Raises InvalidConstraint where nothing may follow that could."""
    ends = set(vocabulary.eos_token_ids)
    for place in range(PROBE_TOKENS):
        allowed = allowed_tokens(matcher.mask())
        if not allowed:
            raise InvalidConstraint(
                "the grammar is too complex to follow, or leads nowhere"
                if place
                else "no text matches, or the grammar is too complex"
            )
        token_id = choose.choice(allowed)
        if token_id in ends:
            return
        matcher.advance(token_id)
        if matcher.complete:
            return


def grammar_of(spec: ConstraintSpec, vocabulary: MatchVocabulary) -> str:
    """Raises InvalidConstraint for what is malformed; the library has its own say when it compiles the grammar."""
    special_texts = vocabulary.special_texts
    match spec.kind:
        case ConstraintKind.JSON_SCHEMA:
            schema = checked_schema(parse_json(spec.source), spec.lenient)
            start = json_text(schema, spec.lenient)
        case ConstraintKind.JSON_OBJECT:
            start = json_text({"type": "object"})
        case ConstraintKind.REGEX:
            start = regex(spec.source)
        case ConstraintKind.EBNF:
            return ebnf_to_lark(spec.source, special_texts)
        case ConstraintKind.CHOICES:
            start = " | ".join(literal(text, special_texts) for text in parse_json(spec.source))
        case ConstraintKind.STRUCTURAL_TAG:
            return structural_tag_to_lark(parse_json(spec.source), special_texts)
    return f"{HEADER}start: {start}\n"


def allowed_tokens(mask: bytes) -> list[int]:
    """Ids of the first allowed tokens, at most one per byte of the mask."""
    return [8 * index + (byte & -byte).bit_length() - 1 for index, byte in enumerate(mask) if byte]
