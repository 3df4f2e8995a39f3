"""Server reflection, v1alpha and v1. Both versions have the same messages under two names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import Default
from google.rpc import error_details_pb2  # noqa: F401  registers the types of error details for whoever resolves them
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio  # type: ignore[attr-defined]  # missing in the stubs

NAMES = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")


class SymbolPool:
    """The process's descriptors, found by more names than the library's own pool knows: a method is `Service.Method`,
    and a value of an enum may also be named below its enum."""

    def __init__(self) -> None:
        self._pool = Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            parent, _, name = symbol.rpartition(".")
            file: FileDescriptor = self._pool.FindFileContainingSymbol(parent)
            service = file.services_by_name.get(parent.rpartition(".")[2])
            if service is not None and service.full_name == parent:
                service.methods_by_name[name]
            else:
                self._pool.FindEnumTypeByName(parent).values_by_name[name]
            return file


def reflection_handlers(services: Sequence[str]) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
    """Handlers that list these services. The v1 name is not listed: its descriptor is not in the pool."""
    names = (*services, NAMES[0])
    servicer = aio.ReflectionServicer(names, SymbolPool())  # type: ignore[attr-defined]  # missing in the stubs
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in NAMES)
