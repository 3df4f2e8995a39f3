"""Who may use a route: decided by the class of the route that the router chose, never by the URL's text."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from inferd_gateway.auth import ADMIN, INFER, OBSERVE, KeyRing, credential
from inferd_gateway.json_body import JsonRequest

# For the description: a key is needed where keys are set.
KEY_OR_NONE: dict[str, Any] = {"security": [{"key": []}, {}]}
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PublicRoute(APIRoute):
    """Open to everyone: health, version. Takes no body."""

    quiet = True  # polled; logged at debug while all is well


class KeyRoute(APIRoute):
    """Needs an API key, where keys are set; it is checked before the body is read."""

    scopes = frozenset({INFER})

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options["openapi_extra"] = KEY_OR_NONE
        super().__init__(*arguments, **options)

    def is_open(self, keys: KeyRing) -> bool:
        """Whether nobody has to show a key."""
        return False

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_authorized(request: Request) -> Response:
            keys = request.app.state.gateway.keys
            if not self.is_open(keys):
                keys.check(credential(request), self.scopes)
            json_request = JsonRequest(request.scope, request.receive)
            if self.body_field is not None:
                await json_request.load_json()
            return await handle(json_request)

        return handle_authorized


class DiscoveryRoute(KeyRoute):
    """What is served: also for those who only look."""

    scopes = frozenset({INFER, OBSERVE})


class ObserveRoute(KeyRoute):
    """Metrics: for scrapers, which need a key once there is one for them."""

    scopes = frozenset({OBSERVE, ADMIN})
    quiet = True

    def is_open(self, keys: KeyRing) -> bool:
        return not keys.has(OBSERVE)
