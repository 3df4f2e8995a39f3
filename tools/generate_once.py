"""One greedy answer of a daemon, over gRPC: `python tools/generate_once.py HOST:PORT "prompt"`."""

from __future__ import annotations

import sys

import grpc

from inferd.v1 import inference_pb2, inference_pb2_grpc


def main() -> None:
    address, prompt = sys.argv[1:]
    request = inference_pb2.GenerateRequest(
        prompt={"text": prompt}, sampling={"temperature": 0.0}, stop={"max_tokens": 16, "ignore_eos": True}
    )
    with grpc.insecure_channel(address) as channel:
        stream = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request, timeout=120)
        print("".join(choice.text for part in stream for choice in part.choices))


if __name__ == "__main__":
    main()
