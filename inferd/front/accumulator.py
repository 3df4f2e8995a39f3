"""Between the engine's pace and the consumer's: one growing record per choice instead of a queue of messages."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from inferd.request import FinishReason
from inferd.step import TokenLogprobs


@dataclass(slots=True)
class PendingChoice:
    """What the core made of one choice and the consumer has not taken."""

    choice: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason | None = None


class Accumulator:
    """Written by the dispatcher, taken by the consumer, both on the event loop. Its size is bounded by max_tokens."""

    def __init__(self) -> None:
        self._pending: dict[int, PendingChoice] = {}
        self._changed = asyncio.Event()
        self._since = 0.0
        self._urgent = False
        self._prefilled = 0

    def add(
        self, choice: int, token_ids: list[int], logprobs: list[TokenLogprobs], finish: FinishReason | None
    ) -> None:
        if not self._pending:
            self._since = time.monotonic()
        pending = self._pending.get(choice)
        if pending is None:
            pending = self._pending[choice] = PendingChoice(choice)
        pending.token_ids += token_ids
        pending.logprobs += logprobs
        pending.finish = finish
        self._urgent |= finish is not None
        self._changed.set()

    def note_prefill(self, prompt_tokens: int) -> None:
        self._prefilled = prompt_tokens
        self.wake()

    def take_prefilled(self) -> int:
        """Prompt tokens computed so far; 0 when that was said or nobody asked."""
        prefilled, self._prefilled = self._prefilled, 0
        return prefilled

    def wake(self) -> None:
        """Let a waiting consumer look around at once, though nothing was added."""
        self._urgent = True
        self._changed.set()

    async def wait(self, max_delay_s: float) -> None:
        """Return when there is something, and it is max_delay_s old or holds a finish."""
        await self._changed.wait()
        while max_delay_s and not self._urgent:
            left = self._since + max_delay_s - time.monotonic()
            if left <= 0:
                break
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                break

    def take(self) -> list[PendingChoice]:
        """Everything so far, by choice."""
        taken, self._pending = self._pending, {}
        self._urgent = False
        self._changed.clear()
        return [taken[choice] for choice in sorted(taken)]
