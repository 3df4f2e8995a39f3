"""The sections of a state dump: the front's own, and the core's, which answers even while it is stuck in a step."""

from __future__ import annotations

import asyncio

import msgspec

from inferd import __version__
from inferd.errors import InferdError
from inferd.front.engine import FrontEngine
from inferd.messages import DumpState, StateDump

CORE_SECTIONS = ("scheduler", "sequences", "blocks", "threads")
FRONT_SECTIONS = ("server", "requests", "tasks", "core_error")
SECTIONS = (*FRONT_SECTIONS, *CORE_SECTIONS)
CORE_ANSWER_S = 5.0


async def dump_sections(front: FrontEngine, model_name: str, include_prompts: bool) -> dict[str, bytes]:
    """Name -> JSON. A core that does not answer costs its sections, and says so in `core_error`."""
    sections: dict[str, object] = {
        "server": describe_server(front, model_name),
        "requests": front.live.describe(include_prompts),
        "tasks": describe_tasks(),
    }
    encoded = {name: msgspec.json.encode(section) for name, section in sections.items()}
    try:
        answer = await front.core.ask(lambda token: DumpState(token, include_prompts), CORE_ANSWER_S)
    except InferdError as error:
        return encoded | {"core_error": msgspec.json.encode(error.message)}
    assert isinstance(answer, StateDump)
    return encoded | answer.sections


def describe_server(front: FrontEngine, model_name: str) -> dict[str, object]:
    metrics, gate = front.metrics, front.gate
    return {
        "version": __version__,
        "model": model_name,
        "serving": gate.is_open,
        "drain_reason": gate.drain_reason,
        "engine_phase": gate.phase(),
        "engine_restarts": metrics.engine_restarts,
        "live_choices": front.admission.live,
        "capacity_choices": front.admission.capacity,
        "promised_choices": front.admission.promised,
        "service_rate": front.admission.service_rate,
        "finished": metrics.finished,
        "stats": msgspec.structs.asdict(metrics.stats) if metrics.stats else None,
    }


def describe_tasks() -> list[list[str]]:
    """Where each task of the event loop waits, outermost call first. Tasks of the gRPC library show their name only."""
    return [[task.get_name(), *waiting_at(task.get_coro())] for task in asyncio.all_tasks()]


def waiting_at(coroutine: object) -> list[str]:
    lines = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}")
        coroutine = getattr(coroutine, "cr_await", None)
    return lines
