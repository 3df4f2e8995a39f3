"""GET /health, /ping, /version, /metrics and /openapi.json: open to everyone; metrics until there is a key for them."""

from __future__ import annotations

import asyncio
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from inferd_gateway.context import CurrentCall
from inferd_gateway.routes.access import ObserveRoute, PublicRoute

router = APIRouter(route_class=PublicRoute)
observed = APIRouter(route_class=ObserveRoute)


@router.get("/health")
@router.get("/ping", include_in_schema=False)
async def health(call: CurrentCall) -> Response:
    """200 when a daemon serves, else 503."""
    serving = await asyncio.gather(*(backend.is_serving() for backend in call.gateway.directory.backends))
    status = "ok" if any(serving) else "unavailable"
    return JSONResponse({"status": status}, 200 if any(serving) else 503)


@router.get("/version")
async def version(request: Request) -> dict[str, str]:
    return {"version": request.app.version}


@observed.get("/metrics")
async def metrics(call: CurrentCall) -> Response:
    return Response(call.gateway.metrics.exposition(), media_type="text/plain; version=0.0.4")


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    schema: dict[str, Any] = request.app.openapi()
    return schema


def package_version() -> str:
    try:
        return metadata.version("inferd")
    except metadata.PackageNotFoundError:
        return "0+unknown"
