from __future__ import annotations

import asyncio
import time

from inferd.front.accumulator import Accumulator
from inferd.request import FinishReason


def test_everything_since_the_last_take_comes_by_choice() -> None:
    pending = Accumulator()
    pending.add(1, [5], [], None)
    pending.add(0, [6], [], None)
    pending.add(1, [7, 8], [], FinishReason.EOS)

    first, second = pending.take()
    assert (first.choice, first.token_ids, first.finish) == (0, [6], None)
    assert (second.choice, second.token_ids, second.finish) == (1, [5, 7, 8], FinishReason.EOS)
    assert pending.take() == []


def test_a_consumer_sleeps_until_there_is_something() -> None:
    async def scenario() -> list[int]:
        pending = Accumulator()
        waiting = asyncio.create_task(pending.wait(0.0))
        await asyncio.sleep(0)
        assert not waiting.done()
        pending.add(0, [1], [], None)
        await asyncio.wait_for(waiting, 1)
        return pending.take()[0].token_ids

    assert asyncio.run(scenario()) == [1]


def test_max_delay_ends_with_a_finish_or_a_wake_or_its_time() -> None:
    async def wait_time(delay: float, act: str) -> float:
        pending = Accumulator()
        pending.add(0, [1], [], None)
        started = time.monotonic()
        waiting = asyncio.create_task(pending.wait(delay))
        await asyncio.sleep(0.01)
        if act == "finish":
            pending.add(0, [2], [], FinishReason.EOS)
        elif act == "wake":
            pending.wake()
        await asyncio.wait_for(waiting, 10)
        return time.monotonic() - started

    assert asyncio.run(wait_time(9.0, "finish")) < 5
    assert asyncio.run(wait_time(9.0, "wake")) < 5
    assert asyncio.run(wait_time(0.05, "nothing")) >= 0.05
