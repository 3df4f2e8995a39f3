"""How a generation goes on after its core died: as if nothing had happened, from what was already received."""

from __future__ import annotations

import msgspec

from inferd.errors import EngineDead
from inferd.request import Request
from inferd.step import TokenLogprobs


def continue_single(request: Request, received: list[int], prompt_delivered: bool) -> Request:
    """The request of one choice, with its received tokens as part of the prompt; they still count as output."""
    return msgspec.structs.replace(
        request,
        prompt_token_ids=request.prompt_token_ids + received,
        resumed_tokens=request.resumed_tokens + len(received),
        prompt_logprobs=None if prompt_delivered else request.prompt_logprobs,
        queue_deadline=None,
    )


class Replay:
    """n > 1: the choices have different histories, so the request runs again and what was received is left out.

    Noise is a function of (seed, choice, position), so the second run makes the same tokens; a run that does not
    (another machine's rounding) must not be spliced, and fails with EngineDead.
    """

    def __init__(self, received: list[list[int]]) -> None:
        self._expected = [list(tokens) for tokens in received]
        self._seen = [0] * len(received)
        self._started = [False] * len(received)

    def is_first_output(self, choice: int) -> bool:
        """True once per choice."""
        first, self._started[choice] = not self._started[choice], True
        return first

    def strip(
        self, choice: int, token_ids: list[int], logprobs: list[TokenLogprobs]
    ) -> tuple[list[int], list[TokenLogprobs]]:
        """What of these tokens is new."""
        expected, seen = self._expected[choice], self._seen[choice]
        known = min(len(token_ids), len(expected) - seen)
        if token_ids[:known] != expected[seen : seen + known]:
            raise EngineDead("the engine died, and its successor did not reproduce what was already sent")
        self._seen[choice] = seen + known
        return token_ids[known:], logprobs[known:]
