"""GET /health, /ping, /ready, /version and /openapi.json: open to everyone; /metrics and /load until there is a key."""

from __future__ import annotations

import asyncio
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from inferd_gateway.context import CurrentCall
from inferd_gateway.openapi import describe
from inferd_gateway.routes.access import ObserveRoute, PublicRoute
from inferd_gateway.routes.answers import Answers, answers, errors, unready
from inferd_gateway.schemas.replies import Load, Status, Version

router = APIRouter(route_class=PublicRoute, responses=errors())
EXPOSITION: Answers = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus."}}
observed = APIRouter(route_class=ObserveRoute, responses=errors())


@router.get("/health", responses=answers(Status) | unready(Status))
@router.get("/ping", responses=answers(Status) | unready(Status))
async def health(call: CurrentCall) -> Response:
    """200 when a daemon serves, else 503."""
    serving = await asyncio.gather(*(backend.is_serving() for backend in call.gateway.directory.backends))
    status = "ok" if any(serving) else "unavailable"
    return JSONResponse({"status": status}, 200 if any(serving) else 503)


@router.get("/ready", responses=answers(Status) | unready(Status))
async def ready(call: CurrentCall) -> Response:
    """200 when a model can be asked: a daemon serves, and what it serves is known. Else 503."""
    directory = call.gateway.directory
    serving = await asyncio.gather(*(backend.is_serving() for backend in directory.backends))
    able = any(serving) and bool(directory.all())
    return JSONResponse({"status": "ready" if able else "not ready"}, 200 if able else 503)


@observed.get("/load", responses=answers(Load))
async def load(call: CurrentCall) -> dict[str, int]:
    """vLLM's shape: the generations that run through this gateway."""
    return {"server_load": sum(backend.open_streams for backend in call.gateway.directory.backends)}


@router.get("/version", responses=answers(Version))
async def version(request: Request) -> dict[str, str]:
    return {"version": request.app.version}


@observed.get("/metrics", response_class=Response, responses=EXPOSITION)
async def metrics(call: CurrentCall) -> Response:
    return Response(call.gateway.metrics.exposition(), media_type="text/plain; version=0.0.4")


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    return describe(request.app)


def package_version() -> str:
    try:
        return metadata.version("inferd")
    except metadata.PackageNotFoundError:
        return "0+unknown"
