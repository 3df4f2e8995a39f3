"""Every RPC of InferenceService, one function each. Needs `pip install inferd` (grpcio and protobuf) and a daemon.

    inferd up demo --pooling mean
    python docs/examples/inference.py 127.0.0.1:50051

A bidirectional stream takes an iterator of requests; a bounded one, as here, ends the stream when it is used up.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from inferd.v1 import common_pb2, inference_pb2, inference_pb2_grpc

TIMEOUT_S = 60
Stub = Any  # inference_pb2_grpc.InferenceServiceStub


def generate(stub: Stub) -> str:
    """A stream of deltas; the last message carries usage. Leaving the loop early and `call.cancel()` stop the work."""
    request = inference_pb2.GenerateRequest(
        prompt=common_pb2.Prompt(text="The capital of France is"),
        sampling=inference_pb2.SamplingParams(temperature=0),
        stop=inference_pb2.StopConditions(max_tokens=8),
    )
    call = stub.Generate(request, timeout=TIMEOUT_S)
    return "".join(choice.text for response in call for choice in response.choices)


def generate_json(stub: Stub) -> str:
    """Generate with a constraint: the output is of the schema."""
    schema = '{"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}'
    request = inference_pb2.GenerateRequest(
        prompt=common_pb2.Prompt(text="A person as JSON: "),
        stop=inference_pb2.StopConditions(max_tokens=64),
        constraint=inference_pb2.Constraint(json_schema=schema),
    )
    call = stub.Generate(request, timeout=TIMEOUT_S)
    return "".join(choice.text for response in call for choice in response.choices)


def generate_mux(stub: Stub) -> dict[int, str]:
    """Several generations on one stream. `stream_id` is the caller's; `end` marks the last item of each."""

    def starts() -> Iterator[inference_pb2.GenerateMuxRequest]:
        for stream_id, text in enumerate(("One, two, three,", "Red, green,")):
            request = inference_pb2.GenerateRequest(
                prompt=common_pb2.Prompt(text=text), stop=inference_pb2.StopConditions(max_tokens=8)
            )
            yield inference_pb2.GenerateMuxRequest(stream_id=stream_id, start=inference_pb2.MuxStart(request=request))

    texts: dict[int, str] = {}
    for response in stub.GenerateMux(starts(), timeout=TIMEOUT_S):
        for item in response.items:
            if item.HasField("error"):
                raise RuntimeError(item.error.message)
            for choice in item.response.choices:
                texts[item.stream_id] = texts.get(item.stream_id, "") + choice.text
    return texts


def embed(stub: Stub) -> list[tuple[float, ...]]:
    """Vectors come as the bytes of little-endian floats, one row per input."""
    texts = ("a cat", "a kitten", "the stock market")
    request = inference_pb2.EmbedRequest(inputs=[common_pb2.Prompt(text=text) for text in texts])
    response = stub.Embed(request, timeout=TIMEOUT_S)
    return list(struct.iter_unpack(f"<{response.dimensions}f", response.vectors))


def embed_stream(stub: Stub) -> dict[int, int]:
    """In bulk: answers come as they are ready, by item_id; one bad item fails alone."""

    def items() -> Iterator[inference_pb2.EmbedStreamRequest]:
        for item_id in range(10):
            request = inference_pb2.EmbedRequest(inputs=[common_pb2.Prompt(text=f"Sentence number {item_id}.")])
            yield inference_pb2.EmbedStreamRequest(item_id=item_id, request=request)

    lengths = {}
    for answer in stub.EmbedStream(items(), timeout=TIMEOUT_S):
        if answer.HasField("error"):
            raise RuntimeError(f"item {answer.item_id}: {answer.error.message}")
        lengths[answer.item_id] = len(answer.response.vectors)
    return lengths


def score(stub: Stub) -> list[float]:
    """Log likelihood of each continuation after its context. The other tasks are pairs, rerank, classes and labels."""
    endings = (" Paris.", " a small red ball.")
    items = [
        inference_pb2.ContinuationTask.Item(
            context=common_pb2.Prompt(text="The capital of France is"), continuation=common_pb2.Prompt(text=ending)
        )
        for ending in endings
    ]
    request = inference_pb2.ScoreRequest(continuations=inference_pb2.ContinuationTask(items=items))
    return list(stub.Score(request, timeout=TIMEOUT_S).scores)


def score_stream(stub: Stub) -> dict[int, float]:
    """In bulk: similarity of pairs, an item each."""

    def items() -> Iterator[inference_pb2.ScoreStreamRequest]:
        for item_id, text in enumerate(("a kitten", "the stock market")):
            pair = inference_pb2.PairTask.Pair(
                first=common_pb2.Prompt(text="a cat"), second=common_pb2.Prompt(text=text)
            )
            request = inference_pb2.ScoreRequest(pairs=inference_pb2.PairTask(pairs=[pair]))
            yield inference_pb2.ScoreStreamRequest(item_id=item_id, request=request)

    return {answer.item_id: answer.response.scores[0] for answer in stub.ScoreStream(items(), timeout=TIMEOUT_S)}


def tokenize(stub: Stub) -> list[int]:
    request = inference_pb2.TokenizeRequest(inputs=[common_pb2.Prompt(text="Hello, world!")])
    return list(stub.Tokenize(request, timeout=TIMEOUT_S).inputs[0].token_ids)


def tokenize_stream(stub: Stub) -> dict[int, int]:
    """In bulk: the number of tokens of each text."""

    def items() -> Iterator[inference_pb2.TokenizeStreamRequest]:
        for item_id in range(10):
            inputs = [common_pb2.Prompt(text="word " * (item_id + 1))]
            request = inference_pb2.TokenizeRequest(inputs=inputs, count_only=True)
            yield inference_pb2.TokenizeStreamRequest(item_id=item_id, request=request)

    answers = stub.TokenizeStream(items(), timeout=TIMEOUT_S)
    return {answer.item_id: answer.response.inputs[0].count for answer in answers}


def detokenize(stub: Stub) -> str:
    request = inference_pb2.DetokenizeRequest(inputs=[common_pb2.TokenIds(ids=tokenize(stub))])
    return str(stub.Detokenize(request, timeout=TIMEOUT_S).texts[0])


def refused(stub: Stub) -> str:
    """What a bad value gets: a status, and details that name the field."""
    request = inference_pb2.GenerateRequest(
        prompt=common_pb2.Prompt(text="x"), sampling=inference_pb2.SamplingParams(temperature=9)
    )
    try:
        list(stub.Generate(request, timeout=TIMEOUT_S))
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    raise AssertionError("not refused")


EXAMPLES: tuple[Callable[[Stub], Any], ...] = (
    generate,
    generate_json,
    generate_mux,
    embed,
    embed_stream,
    score,
    score_stream,
    tokenize,
    tokenize_stream,
    detokenize,
    refused,
)


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for example in EXAMPLES:
            print(f"{example.__name__}: {example(stub)!r:.200}")


if __name__ == "__main__":
    main()
