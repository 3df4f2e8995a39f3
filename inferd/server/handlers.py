"""RPC handlers from the service descriptors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from inferd.errors import InvalidParameter
from inferd.server.call import Call, CallRunner, Context, Handler
from inferd.server.fields import refuse_unknown_fields


def service_handler(
    service: ServiceDescriptor, implementations: Mapping[str, Handler], runner: CallRunner
) -> grpc.GenericRpcHandler[Any, Any]:
    """A handler for every method of the contract: none is forgotten."""
    assert implementations.keys() == set(service.methods_by_name), service.full_name
    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            name: _streaming(method, implementations[name], runner)
            if method.client_streaming
            else _answering(method, implementations[name], runner)
            for name, method in service.methods_by_name.items()
        },
    )


def _answering(
    method: MethodDescriptor, implementation: Handler, runner: CallRunner
) -> grpc.RpcMethodHandler[Any, Any]:
    """The implementation gets one checked message."""
    name = _path(method)

    async def checked(request: Message | None, call: Call) -> Message | None:
        if request is None:
            raise InvalidParameter(f"the request is no valid {method.input_type.full_name}")
        refuse_unknown_fields(request)
        return await implementation(request, call)

    async def run(request: Message | None, context: Context) -> Message | None:
        return await runner.run(name, checked, request, context)

    shape = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
    return shape(run, request_deserializer=_parser(method), response_serializer=_serialize)


def _streaming(
    method: MethodDescriptor, implementation: Handler, runner: CallRunner
) -> grpc.RpcMethodHandler[Any, Any]:
    """The implementation gets an async iterator of messages, None for bytes that were none, and checks each."""
    assert method.server_streaming

    async def run(requests: AsyncIterator[Message | None], context: Context) -> None:
        await runner.run(_path(method), implementation, requests, context)

    return grpc.stream_stream_rpc_method_handler(
        run, request_deserializer=_parser(method), response_serializer=_serialize
    )


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _parser(method: MethodDescriptor) -> Callable[[bytes], Message | None]:
    message_class = GetMessageClass(method.input_type)

    def parse(data: bytes) -> Message | None:
        try:
            return message_class.FromString(data)
        except DecodeError:
            return None  # the library would answer INTERNAL; the handler knows better

    return parse


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
