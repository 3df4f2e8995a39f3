"""Runs the inputs of one batch or bulk stream as requests of their own, so many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inferd.errors import RequestAborted
from inferd.front.engine import FrontEngine
from inferd.front.generation import Generation
from inferd.front.output import OutputDelta, OutputParams
from inferd.request import FinishReason, Request
from inferd.text.tokenizer import Tokenizer

FINAL = OutputParams(text=False, final=True)


class Window:
    """At most `size` requests at the engine. Who has some there and finds it full waits for its own to end; who has
    none is refused like everyone else."""

    def __init__(self, front: FrontEngine, tokenizer: Tokenizer, size: int) -> None:
        self._front = front
        self._tokenizer = tokenizer
        self._places = asyncio.Semaphore(size)
        self._live = 0
        self._freed = asyncio.Event()

    async def run_all(self, requests: Sequence[Request]) -> list[OutputDelta]:
        """What came of each, in their order. The first InferdError ends them all."""
        tasks = [asyncio.create_task(self.run(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self, request: Request) -> OutputDelta:
        """Raises what FrontEngine.generate and its iteration raise."""
        async with self._places:
            generation = await self._admitted(request)
            try:
                return complete(await anext(generation))
            finally:
                generation.close()
                self._live -= 1
                self._freed.set()
                self._freed = asyncio.Event()

    async def _admitted(self, request: Request) -> Generation:
        while self._live and not self._front.admission.has_room(request):
            await self._freed.wait()
        generation = self._front.generate(request, FINAL, self._tokenizer)
        self._live += 1
        return generation


def complete(output: OutputDelta) -> OutputDelta:
    """The output, unless it was cut short: there is no part of a vector or a score. Raises RequestAborted."""
    if any(choice.finish is not None and choice.finish.reason is FinishReason.ABORTED for choice in output.choices):
        raise RequestAborted("the request was aborted by an administrator")
    return output
