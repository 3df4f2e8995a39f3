"""Runs a workload against a server: closed loop (fixed callers) or open loop (arrivals that do not wait)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from inferd.bench.clients import Client, Record, measure
from inferd.bench.workload import Item, Workload, items

WARMUP_SEED = 1 << 40
MakeClient = Callable[[], Client]


async def run(workload: Workload, make_client: MakeClient, warmup: int = 1) -> tuple[list[Record], float]:
    """The records of a workload and its wall time in seconds; `warmup` requests before it do not count.

    Those have prompts of their own: a server that caches prompts would answer the measured ones from memory.
    """
    client = make_client()
    try:
        other = msgspec.structs.replace(workload, seed=workload.seed + WARMUP_SEED, num_requests=warmup)
        for item in items(other):
            await measure(client, item)
        started = time.monotonic()
        todo = list(items(workload))
        records = await (_closed(client, todo, workload.concurrency) if workload.rate is None else _open(client, todo))
        return sorted(records, key=lambda record: record.index), time.monotonic() - started
    finally:
        await client.close()


async def _closed(client: Client, todo: list[Item], concurrency: int) -> list[Record]:
    pending = iter(todo)
    records: list[Record] = []

    async def caller() -> None:
        for item in pending:
            records.append(await measure(client, item))

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return records


async def _open(client: Client, todo: list[Item]) -> list[Record]:
    started = time.monotonic()

    async def arrive(item: Item) -> Record:
        await asyncio.sleep(max(0.0, started + item.arrival_s - time.monotonic()))
        return await measure(client, item)

    return list(await asyncio.gather(*map(arrive, todo)))
