"""The same seed gives the same tokens in any company, and what is cancelled leaves nothing behind."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from inferd.testing.product import wait_until
from inferd.v1 import inference_pb2, inference_pb2_grpc

PROMPT = "Once upon a time in a small village"
KV_USAGE = "inferd_kv_cache_usage_ratio"
RUNNING, WAITING = "inferd_requests_running", "inferd_requests_waiting"


def generation(prompt: str = PROMPT, seed: int = 1234, **changes) -> inference_pb2.GenerateRequest:
    fields = {
        "prompt": {"text": prompt},
        "sampling": {"temperature": 0.9, "top_p": 0.95, "seed": seed},
        "stop": {"max_tokens": 24, "ignore_eos": True},
    }
    return inference_pb2.GenerateRequest(**{**fields, **changes})


async def tokens_of(stub, message) -> list[int]:
    return [token async for part in stub.Generate(message) for choice in part.choices for token in choice.token_ids]


def with_stub(product, body):
    async def run():
        async with grpc.aio.insecure_channel(product.address) as channel:
            return await body(inference_pb2_grpc.InferenceServiceStub(channel))

    return asyncio.run(run())


def test_a_seed_gives_the_same_tokens_alone_and_among_31_others(product):
    async def alone_and_in_company(stub):
        alone = await tokens_of(stub, generation())
        others = [tokens_of(stub, generation(f"Story number {i}:", seed=i)) for i in range(31)]
        among, *_ = await asyncio.gather(tokens_of(stub, generation()), *others)
        return alone, among

    alone, among = with_stub(product, alone_and_in_company)
    assert alone == among
    assert len(alone) == 24


def test_greedy_choices_of_one_prompt_are_equal_and_seeded_ones_differ(product):
    async def choices(stub):
        by_index: dict[int, list[int]] = {}
        request = generation(num_choices=3)
        async for part in stub.Generate(request):
            for choice in part.choices:
                by_index.setdefault(choice.index, []).extend(choice.token_ids)
        return by_index

    by_index = with_stub(product, choices)
    assert sorted(by_index) == [0, 1, 2]
    assert len({tuple(tokens) for tokens in by_index.values()}) == 3


def idle(product) -> bool:
    return product.metric(RUNNING) == product.metric(WAITING) == product.metric(KV_USAGE) == 0


@pytest.mark.parametrize("messages_read", [0, 1, 5])
def test_a_cancelled_stream_frees_its_blocks(product, messages_read):
    async def cancel_after(stub):
        call = stub.Generate(generation(stop={"max_tokens": 2000, "ignore_eos": True}))
        for _ in range(messages_read):
            await call.read()
        call.cancel()

    with_stub(product, cancel_after)
    wait_until(lambda: idle(product), 10, "no running request and no used block")


def test_a_deadline_ends_the_call_and_frees_its_blocks(product):
    async def expire(stub):
        call = stub.Generate(generation(stop={"max_tokens": 4000, "ignore_eos": True}), timeout=0.5)
        async for _ in call:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        with_stub(product, expire)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: idle(product), 10, "no running request and no used block")


def test_a_repeated_prompt_is_served_from_the_prefix_cache(product):
    async def twice(stub):
        request = generation("The quick brown fox jumps over the lazy dog. " * 8, stop={"max_tokens": 4})
        infos = []
        for _ in range(2):
            async for part in stub.Generate(request):
                if part.HasField("prompt"):
                    infos.append(part.prompt)
        return infos

    first, second = with_stub(product, twice)
    assert first.tokens == second.tokens
    assert second.cached_tokens >= second.tokens - 17
