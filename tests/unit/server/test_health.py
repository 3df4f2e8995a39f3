from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2

from inferd.server.health import NOT_SERVING, READINESS, SERVICE_UNKNOWN, SERVING, HealthService


class Writer:
    """A call's context whose reader takes a message only when told to."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, message: Any) -> None:
        self.statuses.append(message.status)
        await self.gate.wait()


def request(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_watchers_see_changes_and_the_end() -> None:
    async def scenario() -> tuple[list[int], list[int]]:
        health, ready, unknown = HealthService(), Writer(), Writer()
        watches = [
            asyncio.create_task(health.watch(request(service), writer))  # type: ignore[arg-type]  # a stand-in
            for service, writer in ((READINESS, ready), ("other", unknown))
        ]
        for serving in (True, True, False):
            await settle()
            health.set(READINESS, serving=serving)
        await settle()
        health.close()
        await asyncio.wait_for(asyncio.gather(*watches), 1)
        return ready.statuses, unknown.statuses

    assert asyncio.run(scenario()) == ([NOT_SERVING, SERVING, NOT_SERVING], [SERVICE_UNKNOWN])


def test_a_stuck_watcher_holds_nobody_up() -> None:
    async def scenario() -> list[int]:
        health, stuck, free = HealthService(), Writer(), Writer()
        stuck.gate.clear()
        watches = [
            asyncio.create_task(health.watch(request(""), writer))  # type: ignore[arg-type]  # a stand-in
            for writer in (stuck, free)
        ]
        await settle()
        health.set("", serving=False)
        await settle()
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        return free.statuses

    assert asyncio.run(scenario()) == [SERVING, NOT_SERVING]
