"""The accelerator's worker on a CPU, without capture: buckets, padding, pending tokens and the batched sampler give
what the plain worker gives, bit for bit where a matmul's rows do not depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from inferd_kernels.ops import Ops
from inferd_kernels.proof.problems import paged_batch
from inferd_kernels.weights import Weight

from inferd.checkpoint import open_checkpoint
from inferd.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig, SchedulerConfig
from inferd.executor.build import build_device_worker, build_model, build_worker, executor_info, load_model
from inferd.executor.decode_graphs import DecodeGraphs, context_buckets, row_buckets
from inferd.executor.kv_plan import KVPlan
from inferd.executor.local import DeviceExecutor, LocalExecutor
from inferd.executor.rehearsal import warm_up_plans
from inferd.models.registry import check_checkpoint
from inferd.request import LogprobParams, PoolingParams, Request, SamplingParams, StopParams
from inferd.step import PENDING
from inferd.testing.requests import Collected, Driver, make_request

CPU = torch.device("cpu")
PLAN = KVPlan(num_blocks=24, block_size=4, block_bytes=0, max_context=64)
SCHEDULER = SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=32)


class RowByRow(Ops):
    """A matmul library sums a row in another order for another number of rows; this does not."""

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        rows = [super(RowByRow, self).linear(row, weight, bias) for row in x.split(1)]
        return torch.cat(rows) if rows else super().linear(x, weight, bias)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Hundreds of tiny steps: a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    checkpoint = open_checkpoint(tiny_llama)
    spec = check_checkpoint(checkpoint)
    source = ModelConfig(source="m", path=str(tiny_llama))
    device = DeviceConfig(device="cpu", kernel_backend="reference", threads=1)
    config = EngineConfig(model=source, cache=CacheConfig(num_blocks=PLAN.num_blocks), device=device)
    loaded = load_model(config, checkpoint, spec, CPU, lambda fraction: None)
    return replace(loaded, ops=RowByRow())


@pytest.fixture(scope="module")
def plain(model: Any) -> Callable[[], Driver]:
    def build() -> Driver:
        worker = build_worker(model, PLAN.num_blocks, PLAN.block_size)
        return Driver(config=SCHEDULER, executor=LocalExecutor(worker, executor_info(model, PLAN)))

    return build


@pytest.fixture(scope="module")
def ahead(model: Any) -> Callable[[], Driver]:
    def build() -> Driver:
        worker = build_device_worker(model, PLAN, SCHEDULER)
        return Driver(config=SCHEDULER, executor=DeviceExecutor(worker, executor_info(model, PLAN, looks_ahead=True)))

    return build


def outcomes(drive: Driver, requests: list[Request]) -> dict[tuple[int, int], Collected]:
    drive.add(*requests[: len(requests) // 2])
    for _ in range(3):
        drive.step()
    drive.add(*requests[len(requests) // 2 :])
    drive.run()
    return dict(drive.outputs)


PLAIN_DRAWS: list[dict[str, Any]] = [
    {"sampling": SamplingParams(temperature=0.0)},
    {"sampling": SamplingParams(temperature=0.9, top_k=20, seed=5)},
    {"sampling": SamplingParams(temperature=1.1, top_p=0.8, min_p=0.01, seed=2**63 + 5)},
    {"sampling": SamplingParams(temperature=0.0), "logprobs": LogprobParams(top_n=3)},
    {"sampling": SamplingParams(temperature=1.0, seed=3), "logprobs": LogprobParams(top_n=1, token_ids=(7, 100))},
    {"sampling": SamplingParams(temperature=1.0, seed=4, logit_bias=((5, 9.0), (6, 8.5)))},
    {"sampling": SamplingParams(temperature=1.0, seed=4, allowed_token_ids=(3, 40, 77))},
    {"sampling": SamplingParams(temperature=1.0, seed=8), "num_choices": 3},
    {"sampling": SamplingParams(temperature=0.0), "prompt_logprobs": LogprobParams(top_n=2)},
    {"stop": StopParams(max_tokens=9, min_tokens=4, stop_token_ids=tuple(range(0, 120, 2)))},
]
HISTORY_DRAWS: list[dict[str, Any]] = [
    {"sampling": SamplingParams(temperature=0.0, repetition_penalty=1.4)},
    {"sampling": SamplingParams(temperature=0.7, presence_penalty=1.0, frequency_penalty=0.3, seed=6)},
    {"sampling": SamplingParams(temperature=1.0, bad_words=((4,), (7, 9)), seed=9)},
]


def requests(kinds: list[dict[str, Any]]) -> list[Request]:
    generator = torch.Generator().manual_seed(len(kinds))
    return [
        make_request(
            key, torch.randint(0, 120, (3 + 5 * (key % 4),), generator=generator).tolist(), **({"max_tokens": 9} | kind)
        )
        for key, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("kinds", [PLAIN_DRAWS, PLAIN_DRAWS + HISTORY_DRAWS, HISTORY_DRAWS])
def test_every_kind_of_request_gets_what_the_plain_worker_gives(
    plain: Callable[[], Driver], ahead: Callable[[], Driver], kinds: list[dict[str, Any]]
) -> None:
    expected, drive = outcomes(plain(), requests(kinds)), ahead()
    assert outcomes(drive, requests(kinds)) == expected
    assert all(got.finish is not None for got in expected.values())
    pending = sum(item.token_ids == [PENDING] for plan in drive.plans for item in plan.items)
    assert (pending > 20) == (kinds is not HISTORY_DRAWS)


@pytest.mark.parametrize("limits", [SCHEDULER, SchedulerConfig(max_num_seqs=1, max_num_batched_tokens=9)])
def test_a_warm_up_leaves_nothing(model: Any, plain: Callable[[], Driver], limits: SchedulerConfig) -> None:
    worker = build_device_worker(model, PLAN, limits)
    plans = list(warm_up_plans(limits, PLAN.max_context, PLAN.block_size))
    assert max(plan.num_tokens for plan in plans) > limits.max_num_batched_tokens / 2
    for step in plans:
        assert step.num_tokens <= limits.max_num_batched_tokens
        assert len(step.items) <= limits.max_num_seqs
        result = worker.finish(worker.launch(step))
        assert all(sample.token_id >= 0 for item in result.results for sample in item.samples)
    asked = requests(PLAIN_DRAWS[:3])  # under the warm-up's sequence numbers
    drive = Driver(config=limits, executor=DeviceExecutor(worker, executor_info(model, PLAN, looks_ahead=True)))
    assert outcomes(drive, asked) == outcomes(plain(), asked)


OPS_OF_REQUESTS = {
    *("embedding", "linear", "rms_norm", "add_rms_norm", "activate_gated", "rope_kv_write", "paged_attention"),
    *("copy_blocks", "penalize", "mask_tokens", "sample"),
}


def test_a_warm_up_launches_every_op_that_a_request_may_need(model: Any) -> None:
    """What was never launched is compiled while all wait: 1 s for the first schema, the first penalty, the first fork.
    On a GPU the same plans are run; that has not been timed."""
    launched: set[str] = set()

    class Recording:
        """The ops, and the names of those that were asked for."""

        def __getattr__(self, name: str) -> Any:
            launched.add(name)
            return getattr(model.ops, name)

    watched = replace(model, ops=Recording())
    worker = build_device_worker(watched, PLAN, SCHEDULER)
    for step in warm_up_plans(SCHEDULER, PLAN.max_context, PLAN.block_size):
        worker.finish(worker.launch(step))
    assert launched >= OPS_OF_REQUESTS


def test_a_capture_ends_for_no_call_of_another_thread(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for capture: not run on a GPU."""
    modes: list[str] = []

    @contextmanager
    def graph(graph: object, pool: object, capture_error_mode: str = "global") -> Iterator[None]:
        modes.append(capture_error_mode)
        yield

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    decoder = build_model(model, PLAN.num_blocks, PLAN.block_size)
    DecodeGraphs(decoder, 2, PLAN.max_context, PLAN.block_size, CPU).capture()
    assert modes == ["thread_local"] * 2


def test_vectors_are_the_plain_workers(plain: Callable[[], Driver], ahead: Callable[[], Driver]) -> None:
    asked = [
        make_request(key, range(7 * key + 3), max_tokens=0, pooling=PoolingParams(kind=kind, num_tokens=7 * key + 3))
        for key, kind in enumerate(("mean", "last", "mean"))
    ]
    expected = outcomes(plain(), asked)
    got = outcomes(ahead(), asked)
    assert got == expected
    assert all(one.prompt is not None and one.prompt.vector for one in got.values())


def test_a_padded_bucket_equals_the_step_bit_for_bit_and_writes_nothing_else(model: Any) -> None:
    drive_caches = [build_model(model, PLAN.num_blocks, PLAN.block_size) for _ in range(2)]
    lens = [5, 1, 9]
    tables = torch.tensor([[3, 7, -1], [5, -1, -1], [1, 2, 4]], dtype=torch.int32)
    batch = paged_batch([1, 1, 1], lens, tables, page=PLAN.block_size)
    ids = torch.tensor([11, 12, 13])
    for decoder in drive_caches:
        for index, cache in enumerate(decoder.caches):
            generator = torch.Generator().manual_seed(index)
            cache.k.copy_(torch.randn(cache.k.shape, generator=generator))
            cache.v.copy_(torch.randn(cache.v.shape, generator=generator))
    graphs = DecodeGraphs(drive_caches[0], 6, PLAN.max_context, PLAN.block_size, CPU)
    assert graphs.takes(batch)
    assert not graphs.takes(paged_batch([1, 2], [5, 9], tables[:2], page=PLAN.block_size))
    with torch.inference_mode():
        for _ in range(2):  # the second time over what the first left in the buffers
            assert torch.equal(graphs.forward(ids, batch), drive_caches[1].forward(ids, batch))
        few = paged_batch([1], [9], tables[2:], page=PLAN.block_size)
        assert torch.equal(graphs.forward(ids[:1], few), drive_caches[1].forward(ids[:1], few))
    for padded, exact in zip(drive_caches[0].caches, drive_caches[1].caches, strict=True):
        assert torch.equal(padded.k, exact.k)
        assert torch.equal(padded.v, exact.v)


def test_buckets_end_at_the_limit_and_waste_little() -> None:
    for most in (1, 3, 6, 8, 64, 100, 256, 1000):
        sizes = row_buckets(most)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == most
    for rows in range(32, 1000):
        bucket = next(size for size in row_buckets(1000) if size >= rows)
        assert (bucket - rows) / bucket <= 0.25
    assert context_buckets(100) == [100]
    assert context_buckets(8192) == [2048, 8192]
    assert context_buckets(131072) == [2048, 8192, 32768, 131072]
