"""Bearer keys. Everything but health needs one when there are any; keys are compared as hashes, in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc

from inferd.errors import BadToken, InferdError, MissingToken
from inferd.server.call import Context
from inferd.server.health import SERVICE_NAME as HEALTH
from inferd.server.status import status_code, status_trailers

Details = grpc.HandlerCallDetails
MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class KeyCheck(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Refuses calls without a valid `authorization: Bearer KEY` before anything of them is read."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes = [digest(key) for key in keys]

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[MethodHandler]], details: Details
    ) -> MethodHandler:
        error = None if details.method.startswith(f"/{HEALTH}/") else self.check(details)
        return await continuation(details) if error is None else refusal(error)

    def check(self, details: Details) -> InferdError | None:
        """What is wrong with the call's credentials."""
        values = [str(value) for key, value in details.invocation_metadata or () if key == "authorization"]
        if not values:
            return MissingToken("no credentials: send the metadata `authorization: Bearer KEY`")
        scheme, _, key = values[0].partition(" ")
        given = digest(key.strip())
        # No early exit: the time must not tell which key was nearly right.
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        if len(values) > 1 or scheme.lower() != "bearer" or not any(matches):
            return BadToken("the given key is not valid")
        return None


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def refusal(error: InferdError) -> MethodHandler:
    """Answers any shape of call at once."""

    async def refuse(requests: object, context: Context) -> None:
        await context.abort(status_code(error), error.message, status_trailers(error, ""))

    return grpc.stream_stream_rpc_method_handler(refuse)
