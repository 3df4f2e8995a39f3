"""Builds the application: the only place that knows all the parts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Scope

from inferd_gateway.api_errors import error_body
from inferd_gateway.auth import load_keys
from inferd_gateway.backend import Backend
from inferd_gateway.channel import channel_credentials
from inferd_gateway.context import Gateway, record_of
from inferd_gateway.directory import ModelDirectory
from inferd_gateway.errors import ApiError
from inferd_gateway.metrics import Metrics
from inferd_gateway.middleware import GatewayMiddleware, allowed_methods
from inferd_gateway.routes import (
    chat,
    completions,
    embeddings,
    messages,
    models,
    responses,
    score,
    status,
    tokenize,
)
from inferd_gateway.settings import Settings, SettingsError
from inferd_gateway.templates.renderer import Renderer

MODULES = (chat, completions, responses, messages, embeddings, score, models, tokenize, status)
ROUTERS = (*(module.router for module in MODULES), status.observed)


def create_app(settings: Settings) -> FastAPI:
    """Raises SettingsError for files that cannot be read."""
    keys, template, metrics = load_keys(settings), read_template(settings.chat_template), Metrics()
    credentials = channel_credentials(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backends = make_backends(settings, credentials)
        metrics.watch_loads({backend.target: backend for backend in backends})
        renderer = Renderer()
        directory = ModelDirectory(backends, settings, template, renderer)
        app.state.gateway = Gateway(settings, keys, metrics, renderer, directory)
        refresher = asyncio.create_task(directory.keep_fresh())
        try:
            yield
        finally:
            refresher.cancel()
            await asyncio.gather(refresher, return_exceptions=True)
            await renderer.close()
            await asyncio.gather(*(backend.close() for backend in backends))

    app = FastAPI(
        title="inferd gateway", version=status.package_version(), lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, strict_content_type=False,
    )  # fmt: skip
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_middleware(GatewayMiddleware, settings=settings, metrics=metrics, methods_at=methods_at)
    return app


def make_backends(settings: Settings, credentials: grpc.ChannelCredentials | None) -> list[Backend]:
    admin = dict(pair.split("=", 1) for pair in settings.backend_admin)
    return [
        Backend(target, settings.backend_api_key, credentials, admin.get(target), settings.backend_admin_api_key)
        for target in settings.backend
    ]


def methods_at(scope: Scope) -> frozenset[str]:
    """The methods of all routes that the path of a request has."""
    routes = (route for router in ROUTERS for route in router.routes if isinstance(route, Route))
    return frozenset().union(*(route.methods or () for route in routes if route.matches(scope)[0] != Match.NONE))


def read_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"chat-template: {error}") from None


def error_response(request: Request, error: ApiError) -> JSONResponse:
    body = error_body(error, request.url.path, record_of(request.scope).request_id)
    return JSONResponse(body, error.status, headers=error.headers)


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(request, error)


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Routing's own: 404, and 405, which says what is allowed as OPTIONS would."""
    assert isinstance(error, HTTPException)
    found = ApiError(error.status_code, str(error.detail), headers=error.headers)
    if error.status_code == 405:
        found.headers["Allow"] = allowed_methods(methods_at(request.scope))
    return error_response(request, found)


async def on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Of a union's members, the one that got furthest into the body is the one that was meant.
    found = [(resolved_path(place_of(item), error.body), item) for item in error.errors()]
    param, first = max(found, key=lambda one: len(one[0] or ""))
    told = first["type"] in ("missing", "tool_type")
    got = "" if told else f" (got {shown(first.get('input'))})"
    return error_response(request, ApiError(400, f"{param or 'body'}: {first['msg']}{got}", param=param))


def place_of(item: dict[str, Any]) -> tuple[int | str, ...]:
    """Where an error is. One of a whole object may name the field of it that is at fault."""
    field = item.get("ctx", {}).get("field")
    return (*item["loc"][1:], field) if isinstance(field, str) else item["loc"][1:]


def resolved_path(location: tuple[int | str, ...], body: Any) -> str | None:
    """`messages[0].content`. pydantic's locations also name members of unions: those lead nowhere and are left out."""
    path, here = "", body
    for index, step in enumerate(location):
        inside = (isinstance(here, dict) and step in here) or (isinstance(here, list) and isinstance(step, int))
        if not inside and not (isinstance(here, dict) and index == len(location) - 1):
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
        here = here[step] if inside else None
    return path[:256] or None


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:64]}..."
