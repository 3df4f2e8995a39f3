"""Bearer keys: who may call what, decided before anything of a call is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from inferd.errors import BadToken, Forbidden, InferdError, MissingToken
from inferd.front.metrics import FrontMetrics
from inferd.server.call import Call, CallRunner, Context
from inferd.server.keys import KeyRing, bearer
from inferd.server.scopes import scopes_of_method

Details = grpc.HandlerCallDetails
MethodHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MAX_SHOWN_METHOD = 128


class KeyCheck(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Refuses calls without `authorization: Bearer KEY` of a key with the method's scope, counts and logs them."""

    def __init__(self, ring: KeyRing, runner: CallRunner, metrics: FrontMetrics) -> None:
        self._ring = ring
        self._runner = runner
        self._metrics = metrics

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[MethodHandler]], details: Details
    ) -> MethodHandler:
        error = self.check(details)
        if error is None:
            return await continuation(details)
        self._metrics.refused_calls[error.reason.lower()] += 1
        return refusal(error, details.method[:MAX_SHOWN_METHOD], self._runner)

    def check(self, details: Details) -> InferdError | None:
        """What is wrong with the call's credentials."""
        needed = scopes_of_method(details.method)
        if not needed:
            return None
        values = [str(value) for key, value in details.invocation_metadata or () if key == "authorization"]
        if not values:
            return MissingToken("no credentials: send the metadata `authorization: Bearer KEY`")
        scopes = self._ring.scopes_of(bearer(values[0]))
        if len(values) > 1 or scopes is None:
            return BadToken("the given key is not valid")
        if not scopes & needed:
            return Forbidden(f"the key has the scope {' and '.join(sorted(scopes))}, not {' or '.join(sorted(needed))}")
        return None


def refusal(error: InferdError, method: str, runner: CallRunner) -> MethodHandler:
    """Answers any shape of call at once."""

    async def fail(request: object, call: Call) -> None:
        call.log_fields = {"reason": error.reason}
        raise error

    async def refuse(requests: object, context: Context) -> None:
        await runner.run(method, fail, None, context)

    return grpc.stream_stream_rpc_method_handler(refuse)
