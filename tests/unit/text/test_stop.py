"""Stop strings: the same answer however the text is cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.text.stop import StopMatcher

alphabet = st.text(alphabet="ab日", min_size=1, max_size=5)


def naive(text: str, strings: list[str], include: bool) -> tuple[str, str | None]:
    """Search the whole text for the match that ends first, the longest of those."""
    for end in range(1, len(text) + 1):
        ending = [string for string in strings if text[:end].endswith(string)]
        if ending:
            matched = max(ending, key=len)
            return text[: end if include else end - len(matched)], matched
    return text, None


@given(
    text=st.text(alphabet="ab日", max_size=40),
    strings=st.lists(alphabet, max_size=4),
    include=st.booleans(),
    data=st.data(),
)
def test_any_cut_gives_the_naive_answer(text: str, strings: list[str], include: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    matcher = StopMatcher(strings, include)
    sent, matched = "", None
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        result = matcher.push(text[start:end])
        sent += result.text
        if result.matched is not None:
            matched = result.matched
            break
    sent += matcher.flush()
    assert (sent, matched) == naive(text, strings, include)


@given(
    text=st.text(alphabet="ab", max_size=30),
    strings=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=3),
)
def test_holds_back_no_more_than_it_must(text: str, strings: list[str]) -> None:
    matcher = StopMatcher(strings)
    sent = ""
    for end, character in enumerate(text, start=1):
        result = matcher.push(character)
        if result.matched is not None:
            return
        sent += result.text
        seen = text[:end]
        proper = [string[:cut] for string in strings for cut in range(1, len(string)) if seen.endswith(string[:cut])]
        assert len(seen) - len(sent) == max(map(len, proper), default=0)


def test_examples() -> None:
    matcher = StopMatcher(["\n\n", "END"])
    assert matcher.push("one\n") == ("one", None)
    assert matcher.push("two E") == ("\ntwo ", None)
    assert matcher.push("N") == ("", None)
    assert matcher.push("D more") == ("", "END")
    assert matcher.flush() == ""
    assert StopMatcher(["END"], include_stop=True).push("the END.") == ("the END", "END")
    assert StopMatcher(["aab"]).push("aaab") == ("a", "aab")
    assert StopMatcher([]).push("anything") == ("anything", None)


@pytest.mark.parametrize("text", ["a", "ab", "aaab"])
def test_time_is_linear(text: str) -> None:
    strings = ["a" * 1023 + "b", "ab" * 500 + "c", "a" * 500 + "ba"]

    def cost(count: int) -> float:
        best = float("inf")
        for _ in range(3):
            matcher = StopMatcher(strings)
            began = time.process_time()
            for _ in range(count // 8):
                matcher.push((text * 8)[:8])
            best = min(best, time.process_time() - began)
        return best

    assert cost(64_000) <= 2.6**3 * cost(8_000) + 0.01  # three doublings; quadratic would be 64 times
