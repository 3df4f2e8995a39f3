"""CorePort: what the front asks of the core besides generating, each question with its answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from inferd.errors import DeadlineExceeded, EngineDead, NotReady
from inferd.messages import PrefixCacheCleared, StateDump, ToCore

ANSWER_S = 10.0


class CorePort:
    def __init__(self) -> None:
        self.send: Callable[[ToCore], None] | None = None
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[PrefixCacheCleared | StateDump]] = {}

    async def ask(self, make: Callable[[int], ToCore], timeout_s: float = ANSWER_S) -> PrefixCacheCleared | StateDump:
        """The answer to make(token). Raises NotReady, EngineDead, DeadlineExceeded."""
        if self.send is None:
            raise NotReady("there is no engine core yet", retry_after_s=1.0)
        token = next(self._tokens)
        answer: asyncio.Future[PrefixCacheCleared | StateDump] = asyncio.get_running_loop().create_future()
        self._waiting[token] = answer
        try:
            self.send(make(token))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(f"the engine core did not answer within {timeout_s:g} s") from None
        finally:
            del self._waiting[token]

    def on_answer(self, message: PrefixCacheCleared | StateDump) -> None:
        waiting = self._waiting.get(message.token)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def on_lost(self) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(EngineDead("the engine died before it answered", retry_after_s=1.0))
