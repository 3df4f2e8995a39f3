"""Who may use a route: decided by the class of the route that the router chose, never by the URL's text."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from inferd_gateway.json_body import JsonRequest

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def credential(request: Request) -> str | None:
    """The Authorization header; Anthropic's clients send x-api-key instead."""
    key = request.headers.get("x-api-key")
    return request.headers.get("authorization") or (f"Bearer {key}" if key else None)


class PublicRoute(APIRoute):
    """Open to everyone: health, version, metrics. Takes no body."""


class KeyRoute(APIRoute):
    """Needs an API key, where keys are set; it is checked before the body is read."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_authorized(request: Request) -> Response:
            request.app.state.gateway.keys.check(credential(request))
            json_request = JsonRequest(request.scope, request.receive)
            if self.body_field is not None:
                await json_request.load_json()
            return await handle(json_request)

        return handle_authorized
