"""One request over either protocol, timed at the caller: gRPC Generate, or /v1/completions with SSE."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import msgspec

from inferd.bench.workload import Item, Workload

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class Record(msgspec.Struct):
    """What one request did. Times are seconds on the monotonic clock; chunks are (time, tokens so far)."""

    index: int
    started: float
    finished: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    chunks: list[tuple[float, int]] = msgspec.field(default_factory=list)
    text: str = ""
    outcome: str = "ok"  # ok, cancelled, or the error's status

    @property
    def ttft(self) -> float | None:
        return self.chunks[0][0] - self.started if self.chunks else None


class Client(Protocol):
    def stream(self, item: Item, record: Record) -> AsyncGenerator[None]:
        """Send the item, fill the record, yield after every chunk of tokens."""

    async def close(self) -> None: ...


async def measure(client: Client, item: Item) -> Record:
    """Run one item to its end, or to where it is to be cancelled."""
    record = Record(item.index, time.monotonic())
    stream = client.stream(item, record)
    try:
        async for _ in stream:
            if item.cancel_after is not None and record.output_tokens >= item.cancel_after:
                record.outcome = "cancelled"
                break
            if item.pause_s:
                await asyncio.sleep(item.pause_s)
    finally:
        await stream.aclose()
        record.finished = time.monotonic()
    return record


class GrpcClient:
    """inferd.v1.InferenceService/Generate."""

    def __init__(self, target: str, model: str, workload: Workload, api_key: str | None) -> None:
        import grpc

        from inferd.v1 import inference_pb2, inference_pb2_grpc

        self._grpc, self._pb = grpc, inference_pb2
        self._channel = grpc.aio.insecure_channel(target, [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._model, self._workload = model, workload
        self._metadata = [("authorization", f"Bearer {api_key}")] if api_key else []

    async def stream(self, item: Item, record: Record) -> AsyncGenerator[None]:
        request = self._pb.GenerateRequest(
            model=self._model,
            prompt={"text": item.prompt},
            sampling={"temperature": self._workload.temperature},
            stop={"max_tokens": item.output_tokens, "ignore_eos": True},
        )
        call = self._stub.Generate(request, metadata=self._metadata)
        try:
            async for message in call:
                new = sum(len(choice.token_ids) for choice in message.choices)
                record.text += "".join(choice.text for choice in message.choices)
                record.prompt_tokens = message.prompt.tokens or record.prompt_tokens
                if new:
                    record.output_tokens += new
                    record.chunks.append((time.monotonic(), record.output_tokens))
                    yield
        except self._grpc.aio.AioRpcError as error:
            record.outcome = error.code().name
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close(None)


class HttpClient:
    """POST /v1/completions, streamed; works against any OpenAI-compatible server."""

    def __init__(self, url: str, model: str, workload: Workload, api_key: str | None) -> None:
        import aiohttp

        self._aiohttp = aiohttp
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # A connection each: some servers close theirs after an answer without saying so.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            url, headers=headers, connector=connector, timeout=aiohttp.ClientTimeout(total=None)
        )
        self._model, self._workload = model, workload

    async def stream(self, item: Item, record: Record) -> AsyncGenerator[None]:
        body = {
            "model": self._model,
            "prompt": item.prompt,
            "max_tokens": item.output_tokens,
            "temperature": self._workload.temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        try:
            async with self._session.post("/v1/completions", json=body) as response:
                if response.status != 200:
                    record.outcome = f"HTTP {response.status}"
                    return
                async for line in response.content:
                    if line.startswith(b"data: {") and self._take(json.loads(line[6:]), record):
                        yield
        except self._aiohttp.ClientError as error:
            record.outcome = type(error).__name__

    def _take(self, event: dict[str, Any], record: Record) -> bool:
        """Fold one event into the record; whether it brought tokens. Servers without running usage send one each."""
        if "error" in event:
            record.outcome = str(event["error"].get("code") or event["error"].get("type"))
            return False
        usage = event.get("usage") or {}
        record.prompt_tokens = usage.get("prompt_tokens", record.prompt_tokens)
        has_choice = bool(event.get("choices"))
        before = record.output_tokens
        record.output_tokens = usage.get("completion_tokens", before + has_choice)
        if not has_choice or record.output_tokens == before:
            return False
        record.text += event["choices"][0].get("text") or ""
        record.chunks.append((time.monotonic(), record.output_tokens))
        return True

    async def close(self) -> None:
        await self._session.close()
