"""`inferd health`: one grpc.health.v1 Check, for scripts and containers. A client: it loads nothing of the server."""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferd.cli.arguments import Parsed


def run(parsed: Parsed) -> int:
    """Print the status; 0 when SERVING."""
    backend, service = str(parsed.get("backend")), str(parsed.get("service"))
    status = check(backend, service, float(parsed.get("timeout")))
    print(f"{backend} {service or 'process'}: {status}", file=sys.stdout if status == "SERVING" else sys.stderr)
    return 0 if status == "SERVING" else 1


def check(backend: str, service: str, timeout_s: float) -> str:
    """A health status name, or the gRPC status name of the failed call."""
    with grpc.insecure_channel(backend) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            return f"{error.code().name}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
