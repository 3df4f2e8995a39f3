"""The consumer's side of one generation: deltas out, and an end that frees everything."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from inferd.front.accumulator import PendingChoice
from inferd.front.choice_text import ChoiceText
from inferd.front.metrics import FrontMetrics
from inferd.front.output import ChoiceDelta, OutputDelta, OutputParams, PromptInfo, Timing, Usage
from inferd.front.tracker import Tracker
from inferd.text.tokenizer import Tokenizer


class Generation:
    """An async iterator of OutputDelta and a context manager: leaving it early aborts what still runs.

    Iteration raises the InferdError that ended the request, after what had been received before it.
    """

    def __init__(
        self,
        tracker: Tracker,
        output: OutputParams,
        tokenizer: Tokenizer,
        metrics: FrontMetrics,
        on_close: Callable[[Tracker], None],
    ) -> None:
        self._tracker = tracker
        self._output = output
        self._metrics = metrics
        self._on_close = on_close
        self._request = tracker.request
        self._texts = [
            ChoiceText(choice, tokenizer, self._request, output) for choice in range(self._request.num_choices)
        ]
        self._prompt_given = False
        self._complete = False
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputDelta:
        delta = await (self._next_final() if self._output.final else self._next())
        if delta is None:
            raise StopAsyncIteration
        return delta

    def close(self) -> None:
        """Free everything; idempotent. What has not finished is aborted."""
        if self._closed:
            return
        self._closed = True
        unfinished = sum(not text.finished for text in self._texts)
        if unfinished:
            self._metrics.on_unfinished(unfinished, failed=self._tracker.error is not None)
        self._tracker.abort()
        self._on_close(self._tracker)

    @property
    def usage(self) -> Usage:
        """So far."""
        prompt = self._tracker.prompt
        return Usage(
            prompt_tokens=len(self._request.prompt_token_ids),
            cached_prompt_tokens=prompt.num_cached_tokens if prompt else 0,
            completion_tokens=sum(text.completion_tokens for text in self._texts),
            draft_tokens=self._tracker.draft_tokens,
            accepted_draft_tokens=self._tracker.accepted_draft_tokens,
        )

    @property
    def timing(self) -> Timing:
        """So far."""
        tracker = self._tracker
        return Timing(
            queue_s=tracker.prompt.queue_s if tracker.prompt else 0.0,
            prefill_s=tracker.prompt.prefill_s if tracker.prompt else 0.0,
            decode_s=tracker.clock.last_token - tracker.clock.first_token,
            total_s=time.monotonic() - self._request.arrival,
        )

    @property
    def ttft_s(self) -> float | None:
        """Admission to first token."""
        first = self._tracker.clock.first_token
        return first - self._request.arrival if first else None

    async def _next(self) -> OutputDelta | None:
        tracker = self._tracker
        while not self._complete:
            if tracker.error is None:
                await tracker.pending.wait(self._output.max_delay_s)
            prefilled = tracker.pending.take_prefilled()
            choices = [delta for p in tracker.pending.take() if (delta := self._deliver(p)) is not None]
            self._complete = all(text.finished for text in self._texts)
            if choices:
                return self._assemble(choices)
            if prefilled:
                return OutputDelta([], prefilled_tokens=prefilled)
            if tracker.error is not None:
                raise tracker.error
        return None

    def _deliver(self, pending: PendingChoice) -> ChoiceDelta | None:
        """The delta of what is pending of one choice; None when there is nothing to say."""
        text = self._texts[pending.choice]
        if text.finished:
            return None
        delta = text.push(pending.token_ids, pending.logprobs, pending.finish)
        if delta.finish is not None:
            self._tracker.end_choice(pending.choice)  # a stop string: the core does not know
            self._metrics.on_finished(delta.finish.reason, delta.finish.completion_tokens)
            return delta
        return delta if delta.text or delta.token_ids else None

    def _assemble(self, choices: list[ChoiceDelta]) -> OutputDelta:
        prompt = None
        if not self._prompt_given and self._tracker.prompt is not None:
            self._prompt_given = True
            given = self._tracker.prompt
            count = len(self._request.prompt_token_ids)
            prompt = PromptInfo(count, given.num_cached_tokens, given.prompt_logprobs, given.vector)
        if not self._complete:
            return OutputDelta(choices, prompt, self.usage if self._output.usage_in_every_delta else None)
        timing = self.timing
        self._metrics.on_complete(timing.total_s, len(self._request.prompt_token_ids))
        return OutputDelta(choices, prompt, self.usage, timing)

    async def _next_final(self) -> OutputDelta | None:
        """All deltas as one."""
        prompt, last = None, None
        parts: list[list[ChoiceDelta]] = [[] for _ in self._texts]
        while (delta := await self._next()) is not None:
            prompt, last = prompt or delta.prompt, delta
            for choice in delta.choices:
                parts[choice.index].append(choice)
        if last is None:
            return None
        return OutputDelta([merge(part) for part in parts], prompt, last.usage, last.timing)


def merge(parts: list[ChoiceDelta]) -> ChoiceDelta:
    """Several deltas of one choice as one."""
    return ChoiceDelta(
        index=parts[0].index,
        text="".join(part.text for part in parts),
        token_ids=[token for part in parts for token in part.token_ids],
        logprobs=[entry for part in parts for entry in part.logprobs],
        finish=parts[-1].finish,
    )
