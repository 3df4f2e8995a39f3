"""Constrained choices in the scheduler: masks in the plan, matchers that keep pace with their sequence."""

from __future__ import annotations

import pytest

from inferd.config import SchedulerConfig
from inferd.constraint.matcher import MatcherFactory
from inferd.constraint.vocabulary import MatchVocabulary
from inferd.messages import Vocabulary
from inferd.request import FinishReason, Request, SamplingParams, StopParams
from inferd.testing.fake_executor import fake_info, solo_tokens
from inferd.testing.requests import Driver, make_request

VOCAB, END = 120, 119
PROMPT = [5, 6, 7, 8, 9]
HEADER = '%llguidance {"no_forcing": true}\n'


@pytest.fixture(scope="module")
def factory() -> MatcherFactory:
    """ASCII, one token per character."""
    return MatcherFactory(MatchVocabulary(Vocabulary([bytes([byte]) for byte in range(VOCAB)], [END], [END]), VOCAB))


def start(pattern: str) -> str:
    return f"{HEADER}start: /{pattern}/\n"


def driver(num_blocks: int = 64, **config: int) -> Driver:
    return Driver(fake_info(num_blocks=num_blocks, vocab_size=VOCAB), SchedulerConfig(**config))  # type: ignore[arg-type]


def ask(key: int, max_tokens: int = 20, min_tokens: int = 0, ends: bool = True, **fields: object) -> Request:
    eos = (END,) if ends else ()
    stop = StopParams(max_tokens=max_tokens, min_tokens=min_tokens, eos_token_ids=eos)
    return make_request(key, PROMPT, seed=key, stop=stop, **fields)


def add(run: Driver, factory: MatcherFactory, pattern: str, request: Request) -> None:
    ends = bool(request.stop.eos_token_ids)
    run.scheduler.add(request, factory.matcher(start(pattern), may_end=ends))


def text(run: Driver, key: int, choice: int = 0) -> str:
    return "".join(chr(token) for token in run.choice(key, choice).token_ids if token != END)


def test_output_matches_and_ends_by_itself(factory: MatcherFactory) -> None:
    run = driver()
    add(run, factory, "[0-9]{4}-(a|b)", ask(1))
    run.run()

    assert text(run, 1)[:4].isdigit()
    assert text(run, 1)[4:] in ("-a", "-b")
    assert run.choice(1).finish is FinishReason.EOS
    assert END not in run.choice(1).token_ids


def test_neighbours_are_as_if_alone_and_pay_nothing(factory: MatcherFactory) -> None:
    run = driver()
    run.add(ask(2, ends=False), ask(3, ends=False, sampling=SamplingParams(temperature=1.0, seed=3)))
    add(run, factory, "[a-c]{6}", ask(1))
    run.run()

    for key in (2, 3):
        assert run.choice(key).token_ids == solo_tokens(PROMPT, key, 0, 20, VOCAB)
    assert len(text(run, 1)) == 6
    masked = [len(plan.masks) for plan in run.plans]
    assert masked == [1] * 6 + [0] * (len(masked) - 6)


def test_a_chunk_of_the_prompt_has_no_mask(factory: MatcherFactory) -> None:
    run = driver(max_num_batched_tokens=2)
    add(run, factory, "ab", ask(1))
    run.run()

    assert [len(plan.masks) for plan in run.plans] == [0, 0, 1, 1]
    assert text(run, 1) == "ab"


def test_choices_part_and_each_matches(factory: MatcherFactory) -> None:
    run = driver()
    add(run, factory, "[a-z]{3}[0-9]{3}", ask(1, num_choices=4))
    run.run()

    texts = [text(run, 1, choice) for choice in range(4)]
    assert all(each[:3].isalpha() and each[3:].isdigit() and len(each) == 6 for each in texts)
    assert len(set(texts)) == 4


def test_preemption_changes_nothing(factory: MatcherFactory) -> None:
    pattern = "[a-z]{9}[0-9]{9}"
    alone = driver()
    for key in range(1, 5):
        add(alone, factory, pattern, ask(key, num_choices=2))
    alone.run()
    tight = driver(num_blocks=14)
    for key in range(1, 5):
        add(tight, factory, pattern, ask(key, num_choices=2))
    tight.run()

    assert tight.scheduler.stats().preemptions > 0
    for key in range(1, 5):
        for choice in range(2):
            assert text(tight, key, choice) == text(alone, key, choice)
            assert len(text(tight, key, choice)) == 18


def test_a_constraint_that_never_ends_runs_to_the_limit(factory: MatcherFactory) -> None:
    run = driver()
    add(run, factory, "[a-c]*", ask(1, max_tokens=9, ends=False))
    add(run, factory, "[a-c]{50}", ask(2, max_tokens=9))
    run.run()

    for key in (1, 2):
        assert run.choice(key).finish is FinishReason.MAX_TOKENS
        assert set(text(run, key)) <= set("abc")
        assert len(text(run, key)) == 9


def test_an_end_may_wait_for_min_tokens_but_what_is_complete_ends(factory: MatcherFactory) -> None:
    run = driver()
    add(run, factory, "[a-c]*", ask(1, max_tokens=9, min_tokens=5))
    add(run, factory, "abc", ask(2, max_tokens=9, min_tokens=5))
    run.run()

    assert len(text(run, 1)) >= 5
    assert text(run, 2) == "abc"
    assert run.choice(2).finish is FinishReason.EOS


def test_a_dead_end_fails_its_choice_alone(factory: MatcherFactory) -> None:
    """The last letter of the constraint is a stop token that min_tokens rules out."""
    run = driver()
    stop = StopParams(max_tokens=9, min_tokens=5, eos_token_ids=(END,), stop_token_ids=(ord("b"),))
    add(run, factory, "ab", make_request(1, PROMPT, stop=stop))
    add(run, factory, "[a-c]{6}", ask(2))
    run.add(ask(3, ends=False))
    run.run()

    assert (run.choice(1).error, text(run, 1)) == ("CONSTRAINT_FAILED", "a")
    assert run.choice(2).finish is FinishReason.EOS
    assert run.choice(3).token_ids == solo_tokens(PROMPT, 3, 0, 20, VOCAB)


def test_a_matcher_that_has_failed_allows_nothing(factory: MatcherFactory) -> None:
    matcher = factory.matcher(start("ab"))
    matcher.advance(ord("x"))
    run = driver()
    run.scheduler.add(ask(1, num_choices=2), matcher)
    run.run()

    assert [run.choice(1, choice).error for choice in range(2)] == ["CONSTRAINT_FAILED"] * 2


def test_refused_requests_are_reported(factory: MatcherFactory) -> None:
    run = driver()
    run.scheduler.refuse(ask(1, num_choices=2), "INVALID_CONSTRAINT")
    run.run()

    assert [run.choice(1, choice).error for choice in range(2)] == ["INVALID_CONSTRAINT"] * 2
    assert run.scheduler._roster.constrained == {}


def test_nothing_is_left_of_what_ended(factory: MatcherFactory) -> None:
    run = driver()
    add(run, factory, "[a-c]{6}", ask(1))
    add(run, factory, "[a-c]{60}", ask(2, num_choices=3))
    for _ in range(3):
        run.step()
    run.scheduler.abort(2, 1)
    assert len(run.scheduler._roster.constrained) == 3
    run.scheduler.abort(2)
    run.run()

    assert run.scheduler._roster.constrained == {}
