"""RPC handlers from the service descriptors: what is implemented, and UNIMPLEMENTED with a reason for the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from inferd.errors import InvalidParameter, UnsupportedFeature
from inferd.server.call import Call, CallRunner, Context, Handler
from inferd.server.fields import refuse_unknown_fields


def service_handler(
    service: ServiceDescriptor, implementations: Mapping[str, Handler], runner: CallRunner
) -> grpc.GenericRpcHandler[Any, Any]:
    """A handler for every method of the contract, so that none is forgotten."""
    unknown = implementations.keys() - service.methods_by_name.keys()
    assert not unknown, f"{service.full_name} has no {unknown}"
    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            method.name: (
                _implemented(method, implementations[method.name], runner)
                if method.name in implementations
                else _unimplemented(method, runner)
            )
            for method in service.methods
        },
    )


def _implemented(
    method: MethodDescriptor, implementation: Handler, runner: CallRunner
) -> grpc.RpcMethodHandler[Any, Any]:
    name = _path(method)
    if method.client_streaming:
        return _streaming(method, implementation, runner)

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


def _unimplemented(method: MethodDescriptor, runner: CallRunner) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(request: Message | None, call: Call) -> Message | None:
        raise UnsupportedFeature(f"{method.name} is not built yet", metadata={"method": call.method})

    async def run(requests: object, context: Context) -> None:
        await runner.run(_path(method), refuse, None, context)

    # Answers before reading anything, so this shape serves all four.
    return grpc.stream_stream_rpc_method_handler(run)


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
