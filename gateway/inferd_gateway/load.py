"""What a daemon reports of its load (AdminService.WatchLoad), which is that of all its callers and not of this gateway
alone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from inferd.v1 import admin_pb2, admin_pb2_grpc
from inferd_gateway.channel import open_channel
from inferd_gateway.mux import duration

INTERVAL_S = 0.1  # the least between two reports
HEARTBEAT_S = 1.0  # the most
STALE_S = 3.0
RETRY_S = 2.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """load: choices running and waiting. open_streams: this gateway's at the time, which are among them."""

    load: int
    open_streams: int
    received: float


class LoadWatch:
    """Follows one daemon's reports. `open_streams` counts this gateway's at that daemon. Made inside the event loop."""

    def __init__(
        self,
        target: str,
        token: str | None,
        credentials: grpc.ChannelCredentials | None,
        open_streams: Callable[[], int],
    ) -> None:
        self._target = target
        self._channel = open_channel(target, None if target.startswith("unix:") else credentials)
        self._stub = admin_pb2_grpc.AdminServiceStub(self._channel)
        self._token = (("authorization", f"Bearer {token}"),) if token else ()
        self._open_streams = open_streams
        self._report: Report | None = None
        self._works = True

    def load(self) -> int | None:
        """Choices that run or wait at the daemon, with what this gateway has begun and ended since the last report;
        None while there is no report, or none that is recent."""
        report, streams = self._report, self._open_streams()
        if report is None or time.monotonic() - report.received > STALE_S:
            return None
        # A report may have been made before the daemon saw our newest streams: it has those at least.
        return max(streams, report.load + streams - report.open_streams)

    async def follow(self) -> None:
        """Runs until cancelled."""
        while True:
            try:
                await self._listen()
            except grpc.aio.AioRpcError as error:
                self._say(False, error.code().name)
            self._report = None
            await asyncio.sleep(RETRY_S)

    async def close(self) -> None:
        await self._channel.close(None)

    async def _listen(self) -> None:
        request = admin_pb2.WatchLoadRequest(interval=duration(INTERVAL_S), heartbeat=duration(HEARTBEAT_S))
        call = self._stub.WatchLoad(request, metadata=self._token)
        try:
            async for load in call:
                self._report = Report(load.running + load.waiting, self._open_streams(), time.monotonic())
                self._say(True, "OK")
        finally:
            call.cancel()

    def _say(self, works: bool, status: str) -> None:
        """Once per change."""
        if works != self._works:
            text = "a daemon reports its load again" if works else "a daemon does not report its load"
            log.log(logging.INFO if works else logging.WARNING, text, extra={"admin": self._target, "status": status})
        self._works = works
