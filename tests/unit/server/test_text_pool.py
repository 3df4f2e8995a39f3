"""Where text work runs, how much of it may wait, and that what a large text took is given back."""

from __future__ import annotations

import asyncio
import threading

import pytest

from inferd.errors import QueueFull
from inferd.server import text_pool
from inferd.server.text_pool import INLINE_BYTES, LARGE_BYTES, MAX_PENDING, TextPool


def test_small_work_runs_at_once_and_large_work_beside_the_loop() -> None:
    async def threads() -> list[int]:
        pool = TextPool()
        found = [await pool.run(size, threading.get_ident) for size in (INLINE_BYTES, INLINE_BYTES + 1)]
        pool.close()
        return found

    small, large = asyncio.run(threads())
    assert small == threading.get_ident() != large


def test_so_much_work_may_wait_and_no_more() -> None:
    async def refused() -> str:
        pool, release = TextPool(), threading.Event()
        waiting = [asyncio.ensure_future(pool.run(INLINE_BYTES + 1, release.wait)) for _ in range(MAX_PENDING)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as error:
            await pool.run(INLINE_BYTES + 1, release.wait)
        release.set()
        assert await asyncio.gather(*waiting) == [True] * MAX_PENDING
        pool.close()
        return str(error.value)

    assert str(MAX_PENDING) in asyncio.run(refused())


@pytest.mark.parametrize(("size", "times"), [(LARGE_BYTES - 1, 0), (LARGE_BYTES, 1)])
def test_freed_memory_goes_back_once_after_large_texts(monkeypatch: pytest.MonkeyPatch, size: int, times: int) -> None:
    returned: list[int] = []
    is_returned = threading.Event()

    def note() -> None:
        returned.append(threading.get_ident())
        is_returned.set()

    async def run_three() -> None:
        pool = TextPool()
        await asyncio.gather(*(pool.run(size, lambda: None) for _ in range(3)))
        assert await asyncio.to_thread(is_returned.wait, 5 * times) == bool(times)
        pool.close()

    monkeypatch.setattr(text_pool, "TRIM_DELAY_S", 0.05)
    monkeypatch.setattr(text_pool, "return_freed_memory", note)
    asyncio.run(run_three())
    assert len(returned) == times
    assert threading.get_ident() not in returned
