"""AdminService: abort, drain, clear, watch, dump."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from inferd.errors import InvalidParameter
from inferd.front.engine import FrontEngine
from inferd.messages import ClearPrefixCache, PrefixCacheCleared
from inferd.server.call import Call, Handler
from inferd.server.dump import SECTIONS, dump_sections
from inferd.server.fields import check_count, check_duration
from inferd.v1 import admin_pb2

logger = logging.getLogger("inferd.admin")

MAX_REASON_CHARS = 256
MAX_IDS = 10_000
DRAIN_REPORT_S = 0.1
DEFAULT_INTERVAL_S, MIN_INTERVAL_S = 1.0, 0.05
CHUNK_BYTES = 1 << 20


class AdminService:
    """Handlers only; the state is the front's."""

    def __init__(self, front: FrontEngine, model_name: str) -> None:
        self._front = front
        self._model_name = model_name

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "AbortRequests": self.abort_requests,
            "Drain": self.drain,
            "Undrain": self.undrain,
            "ClearPrefixCache": self.clear_prefix_cache,
            "WatchLoad": self.watch_load,
            "DumpState": self.dump_state,
        }

    async def abort_requests(self, pb: admin_pb2.AbortRequestsRequest, call: Call) -> admin_pb2.AbortRequestsResponse:
        check_reason(pb.reason)
        check_count("request_ids", pb.request_ids, MAX_IDS)
        if bool(pb.request_ids) == pb.all:
            raise InvalidParameter("give request_ids, or all: true; one of them", field="request_ids")
        aborted = self._front.live.finish(None if pb.all else list(pb.request_ids))
        missing = [] if pb.all else sorted(set(pb.request_ids) - set(aborted))
        logger.warning("aborted %d requests", len(aborted), extra={"reason": pb.reason, "not_found": len(missing)})
        return admin_pb2.AbortRequestsResponse(aborted=aborted, not_found=missing)

    async def drain(self, pb: admin_pb2.DrainRequest, call: Call) -> None:
        """The drain outlives this call; Undrain ends it."""
        check_reason(pb.reason)
        abort_at = None
        if pb.HasField("abort_after"):
            abort_at = time.monotonic() + check_duration("abort_after", pb.abort_after, allow_zero=True)
        call.background = True
        gate = self._front.gate
        gate.drain(f"the server is draining: {pb.reason}" if pb.reason else "the server is draining")
        logger.warning("drain", extra={"reason": pb.reason, "live": len(self._front.live)})
        last = None
        while gate.drain_reason is not None and not call.closing.is_set():
            if abort_at is not None and time.monotonic() >= abort_at:
                abort_at = None
                logger.warning("aborted %d requests that did not end in time", len(self._front.live.finish(None)))
            report = drain_report(self._front)
            if report != last:
                await call.write(report)
                last = report
            if report.idle:
                return
            await asyncio.sleep(DRAIN_REPORT_S)

    async def undrain(self, pb: admin_pb2.UndrainRequest, call: Call) -> admin_pb2.UndrainResponse:
        self._front.gate.undrain()
        logger.warning("undrain")
        return admin_pb2.UndrainResponse()

    async def clear_prefix_cache(
        self, pb: admin_pb2.ClearPrefixCacheRequest, call: Call
    ) -> admin_pb2.ClearPrefixCacheResponse:
        salt = pb.salt if pb.HasField("salt") else None
        answer = await self._front.core.ask(lambda token: ClearPrefixCache(token, salt))
        assert isinstance(answer, PrefixCacheCleared)
        logger.warning("prefix cache cleared", extra={"blocks": answer.blocks_freed})
        return admin_pb2.ClearPrefixCacheResponse(blocks_freed=answer.blocks_freed)

    async def watch_load(self, pb: admin_pb2.WatchLoadRequest, call: Call) -> None:
        interval, heartbeat = DEFAULT_INTERVAL_S, math.inf
        if pb.HasField("interval"):
            interval = max(MIN_INTERVAL_S, check_duration("interval", pb.interval, allow_zero=True))
        if pb.HasField("heartbeat"):
            heartbeat = max(MIN_INTERVAL_S, check_duration("heartbeat", pb.heartbeat))
        call.background = True
        async for report in changes(self._front, interval, heartbeat, call.closing):
            await call.write(report)
            if pb.once:
                return

    async def dump_state(self, pb: admin_pb2.DumpStateRequest, call: Call) -> None:
        check_sections(pb.sections)
        sections = await dump_sections(self._front, self._model_name, pb.include_prompts)
        for name in pb.sections or sections:
            data = sections.get(name, b"null")
            for offset in range(0, len(data), CHUNK_BYTES):
                piece = data[offset : offset + CHUNK_BYTES]
                await call.write(admin_pb2.DumpStateResponse(section=name, json=piece))


def check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON_CHARS:
        raise InvalidParameter(
            f"reason has {len(reason)} characters, at most {MAX_REASON_CHARS} are allowed", field="reason"
        )


def check_sections(names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if name not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise InvalidParameter(f"sections[{index}] must be one of {known}, got {name[:64]!r}", field="sections")


def drain_report(front: FrontEngine) -> admin_pb2.DrainResponse:
    if not len(front.live):
        return admin_pb2.DrainResponse(idle=True)
    load = load_report(front)
    return admin_pb2.DrainResponse(running=load.running, waiting=load.waiting)


async def changes(
    front: FrontEngine, interval_s: float, heartbeat_s: float, closing: asyncio.Event
) -> AsyncIterator[admin_pb2.WatchLoadResponse]:
    """The load at first, then whenever something but the age of the last step has changed, and after heartbeat_s
    without a change."""
    sequence, last, due = 0, None, 0.0
    while not closing.is_set():
        report = load_report(front)
        idle_ms, report.idle_ms = report.idle_ms, 0
        if report != last or time.monotonic() >= due:
            due = time.monotonic() + heartbeat_s
            last = admin_pb2.WatchLoadResponse()
            last.CopyFrom(report)
            sequence += 1
            report.sequence, report.idle_ms = sequence, idle_ms
            yield report
        await asyncio.sleep(min(interval_s, heartbeat_s))


def load_report(front: FrontEngine) -> admin_pb2.WatchLoadResponse:
    metrics, now = front.metrics, time.monotonic()
    stats = metrics.stats
    queries, hits = metrics.engine_total("prefix_queries"), metrics.engine_total("prefix_hits")
    rate = metrics.token_rate.rate(now, metrics.generation_tokens)
    report = admin_pb2.WatchLoadResponse(
        tokens_per_second=round(rate, 1),
        prefix_hit_rate=hits / queries if queries else 0.0,
        kv_blocks_total=front.ready.num_blocks if front.ready else 0,  # before the first step too
        draining=front.gate.drain_reason is not None,
        idle_ms=min(2**32 - 1, round(1000 * (now - metrics.last_step_at))) if metrics.last_step_at else 0,
    )
    if stats is not None:
        report.running, report.waiting = stats.running, stats.waiting
        report.waiting_prompt_tokens = stats.waiting_prompt_tokens
        report.kv_blocks_used = stats.blocks_used
    return report
