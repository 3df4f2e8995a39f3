"""Every RPC of AdminService, one function each. It has a listener and keys of its own.

INFERD_ADMIN_API_KEY=secret inferd up demo --admin-listen 127.0.0.1:50052
INFERD_ADMIN_API_KEY=secret python docs/examples/admin.py 127.0.0.1:50052
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import grpc

from inferd.v1 import admin_pb2, admin_pb2_grpc

TIMEOUT_S = 60
METADATA = (("authorization", f"Bearer {os.environ.get('INFERD_ADMIN_API_KEY', '')}"),)
Stub = Any  # admin_pb2_grpc.AdminServiceStub


def watch_load(stub: Stub) -> dict[str, Any]:
    """Once; without `once` a message whenever the load changed, until the call is cancelled."""
    request = admin_pb2.WatchLoadRequest(once=True)
    (load,) = stub.WatchLoad(request, timeout=TIMEOUT_S, metadata=METADATA)
    return {"running": load.running, "waiting": load.waiting, "kv_blocks_total": load.kv_blocks_total}


def dump_state(stub: Stub) -> dict[str, int]:
    """JSON by section, in pieces; here their sizes."""
    sizes: dict[str, int] = {}
    for part in stub.DumpState(admin_pb2.DumpStateRequest(), timeout=TIMEOUT_S, metadata=METADATA):
        sizes[part.section] = sizes.get(part.section, 0) + len(part.json)
    return sizes


def clear_prefix_cache(stub: Stub) -> int:
    request = admin_pb2.ClearPrefixCacheRequest()
    return int(stub.ClearPrefixCache(request, timeout=TIMEOUT_S, metadata=METADATA).blocks_freed)


def abort_requests(stub: Stub) -> tuple[list[str], list[str]]:
    """By the ids that callers gave or got; they end with FINISH_REASON_ABORTED."""
    request = admin_pb2.AbortRequestsRequest(request_ids=["nobody-has-this-id"], reason="an example")
    response = stub.AbortRequests(request, timeout=TIMEOUT_S, metadata=METADATA)
    return list(response.aborted), list(response.not_found)


def drain(stub: Stub) -> bool:
    """Refuse new work; the stream ends when nothing runs any more."""
    messages = list(stub.Drain(admin_pb2.DrainRequest(reason="an example"), timeout=TIMEOUT_S, metadata=METADATA))
    return bool(messages[-1].idle)


def undrain(stub: Stub) -> str:
    stub.Undrain(admin_pb2.UndrainRequest(), timeout=TIMEOUT_S, metadata=METADATA)
    return "serving again"


EXAMPLES: tuple[Callable[[Stub], Any], ...] = (
    watch_load,
    dump_state,
    clear_prefix_cache,
    abort_requests,
    drain,
    undrain,
)


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50052"
    with grpc.insecure_channel(address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        for example in EXAMPLES:
            print(f"{example.__name__}: {example(stub)!r:.200}")


if __name__ == "__main__":
    main()
