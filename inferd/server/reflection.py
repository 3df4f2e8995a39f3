"""Server reflection, v1alpha and v1. Both versions have the same messages under two names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.rpc import error_details_pb2  # noqa: F401  registers the types of error details for whoever resolves them
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio  # type: ignore[attr-defined]  # missing in the stubs

NAMES = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")


def reflection_handlers(services: Sequence[str]) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
    """Handlers that list these services. The v1 name is not listed: its descriptor is not in the pool."""
    servicer = aio.ReflectionServicer((*services, NAMES[0]))  # type: ignore[attr-defined]  # missing in the stubs
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in NAMES)
