"""Every RPC of ModelService, one function each.

inferd up demo
python docs/examples/model.py 127.0.0.1:50051
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import grpc

from inferd.v1 import model_pb2, model_pb2_grpc

TIMEOUT_S = 60
Stub = Any  # model_pb2_grpc.ModelServiceStub


def list_models(stub: Stub) -> list[str]:
    return [card.name for card in stub.ListModels(model_pb2.ListModelsRequest(), timeout=TIMEOUT_S).models]


def get_model_info(stub: Stub) -> dict[str, Any]:
    """What a client needs that renders chats itself. The etag makes asking again cheap."""
    info = stub.GetModelInfo(model_pb2.GetModelInfoRequest(), timeout=TIMEOUT_S)
    again = stub.GetModelInfo(model_pb2.GetModelInfoRequest(if_none_match=info.etag), timeout=TIMEOUT_S)
    assert not again.HasField("card")
    return {
        "architecture": info.architecture,
        "context": info.card.max_context_tokens,
        "tasks": [model_pb2.Task.Name(task) for task in info.card.tasks],
        "template": len(info.chat_templates[0].source),
    }


def download_tokenizer(stub: Stub) -> dict[str, int]:
    """The tokenizer's files, in parts; here their sizes."""
    sizes: dict[str, int] = {}
    for part in stub.DownloadTokenizer(model_pb2.DownloadTokenizerRequest(), timeout=TIMEOUT_S):
        sizes[part.file_name] = sizes.get(part.file_name, 0) + len(part.data)
    return sizes


def get_server_info(stub: Stub) -> dict[str, Any]:
    info = stub.GetServerInfo(model_pb2.GetServerInfoRequest(), timeout=TIMEOUT_S)
    return {"version": info.version, "kv_blocks": info.kv_blocks, "kernels": dict(info.kernel_backends)}


EXAMPLES: tuple[Callable[[Stub], Any], ...] = (list_models, get_model_info, download_tokenizer, get_server_info)


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    with grpc.insecure_channel(address) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        for example in EXAMPLES:
            print(f"{example.__name__}: {example(stub)!r:.200}")


if __name__ == "__main__":
    main()
