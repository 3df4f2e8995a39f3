"""The worker on a tiny model: what a plan asks for is what comes back, whatever else is in the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inferd.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig
from inferd.errors import StartupError
from inferd.executor.base import ExecutorDead
from inferd.executor.factory import create_executor
from inferd.executor.worker import Worker
from inferd.request import LogprobParams, SamplingParams
from inferd.step import BlockCopy, NewSequence, PlanItem, StepPlan, StepResult

GREEDY = SamplingParams(temperature=0.0)
PROMPT = [5, 17, 99, 3, 42, 42, 8, 77, 61, 12, 1, 0, 119, 30, 31, 32, 33, 64, 65, 66]

MakeDriver = Callable[[Path], Any]


@pytest.fixture(scope="module")
def driver(make_driver: MakeDriver, tiny_llama: Path) -> Any:
    return make_driver(tiny_llama)


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_llama).eval()


def expected_logprobs(model: LlamaForCausalLM, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


def config(path: Path, **changes: Any) -> EngineConfig:
    base = EngineConfig(
        model=ModelConfig(source="m", path=str(path)),
        cache=CacheConfig(num_blocks=64),
        device=DeviceConfig(device="cpu", kernel_backend="reference", threads=torch.get_num_threads()),
    )
    return msgspec.structs.replace(base, **changes)


def build(path: Path, **changes: Any) -> Any:
    return create_executor(config(path, **changes), lambda phase, fraction: None)


def test_greedy_tokens_are_transformers(driver: Any, model: LlamaForCausalLM, run_type: type) -> None:
    ids = torch.tensor([PROMPT])
    # Without a mask, transformers takes every pad token of the prompt for padding.
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens = expected[0, len(PROMPT) :].tolist()
    assert len(set(tokens)) > 3
    assert driver.run([run_type(PROMPT, max_tokens=24)]) == [tokens]
    assert driver.run([run_type(PROMPT, max_tokens=24)], chunk=3) == [tokens]


def test_seeded_runs_are_the_same_alone_and_among_31_others(driver: Any, run_type: type) -> None:
    samplings = [
        SamplingParams(temperature=0.5 + index / 20, top_k=index % 5 * 10, top_p=1 - index % 3 / 5, seed=index)
        for index in range(32)
    ]
    runs = [run_type(PROMPT[: 4 + index % 15], sampling, max_tokens=10) for index, sampling in enumerate(samplings)]
    together = driver.run(runs, chunk=7)
    for index in (0, 7, 20, 31):
        alone = run_type(PROMPT[: 4 + index % 15], samplings[index], max_tokens=10)
        assert driver.run([alone]) == [together[index]]
    assert len({tuple(tokens) for tokens in together}) > 20


def test_logprobs_of_output_and_prompt_are_transformers(driver: Any, model: LlamaForCausalLM, run_type: type) -> None:
    options = LogprobParams(top_n=4, token_ids=(9, 2))
    results = []
    for chunk in (100, 6, 1):
        run = run_type(PROMPT, max_tokens=6, logprobs=options, prompt_logprobs=options)
        driver.run([run], chunk=chunk)
        results.append(run)
    tokens = PROMPT + results[0].tokens
    expected = expected_logprobs(model, tokens)
    for run in results:
        reports = run.prompt_results + [sample.logprobs for sample in run.samples]
        assert len(reports) == len(tokens) - 1
        for position, report in enumerate(reports, 1):
            row = expected[position - 1]
            assert report.logprob == pytest.approx(row[tokens[position]].item(), abs=1e-4)
            assert report.rank == 1 + int((row > row[tokens[position]]).sum())
            assert report.top_token_ids == [*row.topk(4).indices.tolist(), 9, 2]
            assert report.top_logprobs == pytest.approx(row[report.top_token_ids].tolist(), abs=1e-4)


def test_penalties_follow_the_output(driver: Any, model: LlamaForCausalLM, run_type: type) -> None:
    """Greedy with penalties, against the same rule in plain Python over transformers' logits."""
    sampling = SamplingParams(
        temperature=0.0, presence_penalty=0.6, frequency_penalty=0.4, repetition_penalty=1.2, bad_words=((61, 12), (7,))
    )
    tokens = list(PROMPT)
    for _ in range(12):
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1].tolist()
        output = tokens[len(PROMPT) :]
        for token in set(tokens):
            logits[token] = logits[token] / 1.2 if logits[token] > 0 else logits[token] * 1.2
        for token in set(output):
            logits[token] -= 0.6 + 0.4 * output.count(token)
        logits[7] = -math.inf
        if tokens[-1] == 61:
            logits[12] = -math.inf
        tokens.append(max(range(len(logits)), key=logits.__getitem__))
    assert driver.run([run_type(PROMPT, sampling, max_tokens=12)], chunk=8) == [tokens[len(PROMPT) :]]


def test_min_tokens_block_the_stop_tokens_until_then(driver: Any, run_type: type) -> None:
    free = driver.run([run_type(PROMPT, max_tokens=8)])[0]
    blocked = (free[0], free[3])
    held = driver.run([run_type(PROMPT, max_tokens=8, min_tokens=3, blocked=blocked)])[0]
    assert not set(held[:3]) & set(blocked)
    never = driver.run([run_type(PROMPT, max_tokens=8, min_tokens=0, blocked=blocked)])[0]
    assert never == free


def test_a_prompt_of_several_choices_is_sampled_once_per_choice_and_forks(tiny_llama: Path, run_type: type,
                                                                         driver: Any) -> None:  # fmt: skip
    """Choices share the prompt's full block; each gets its own copy of the last one."""
    sampling = SamplingParams(temperature=1.5, seed=4)
    alone = [driver.run([run_type(PROMPT, sampling, max_tokens=4, choice=choice)])[0] for choice in (0, 1, 2)]
    executor = build(tiny_llama)

    def announce(seq_id: int, blocks: list[int], outputs: int) -> NewSequence:
        return NewSequence(seq_id, blocks, sampling, None, None, [], outputs, 0, ())

    first = executor.execute(StepPlan(1, [PlanItem(1, 0, PROMPT, [], (0, 1, 2))], [announce(1, [10, 11], 0)]))
    outputs = [[sample.token_id] for sample in first.results[0].samples]
    new = [announce(2, [10, 11], 1), announce(3, [10, 11], 1)]
    copies = [BlockCopy(2, 1, 11, 20), BlockCopy(3, 1, 11, 21)]
    for step in range(3):
        items = [
            PlanItem(seq_id, len(PROMPT) + step, [outputs[choice][-1]], [], (choice,))
            for choice, seq_id in enumerate((1, 2, 3))
        ]
        result = executor.execute(StepPlan(2 + step, items, new, copies))
        new, copies = [], []
        for choice, answer in enumerate(result.results):
            outputs[choice].append(answer.samples[0].token_id)
    assert outputs == alone
    assert len({tuple(tokens) for tokens in outputs}) == 3


def test_a_prefix_found_in_the_cache_is_not_computed_again(tiny_llama: Path, driver: Any, run_type: type) -> None:
    expected = driver.run([run_type(PROMPT, max_tokens=1)])[0]
    executor = build(tiny_llama)
    new = NewSequence(1, [5, 6], GREEDY, None, None, [], 0, 0, ())
    executor.execute(StepPlan(1, [PlanItem(1, 0, PROMPT, [], (0,))], [new]))
    again = NewSequence(2, [5], GREEDY, None, None, [], 0, 0, ())
    plan = StepPlan(2, [PlanItem(2, 16, PROMPT[16:], [9], (0,))], [again], dropped=[1])
    assert [executor.execute(plan).results[0].samples[0].token_id] == expected


def test_results_come_in_the_order_of_the_plan(tiny_llama: Path) -> None:
    executor = build(tiny_llama)
    new = [NewSequence(seq_id, [seq_id, 20 + seq_id], GREEDY, None, None, [], 0, 0, ()) for seq_id in (1, 2, 3)]
    items = [PlanItem(3, 0, PROMPT, [], (0,)), PlanItem(1, 0, [4], [], ()), PlanItem(2, 0, PROMPT[:9], [], (0,))]
    result = executor.execute(StepPlan(8, items, new))
    assert result.step == 8
    assert [answer.seq_id for answer in result.results] == [3, 1, 2]
    assert [len(answer.samples) for answer in result.results] == [1, 0, 1]
    assert result.compute_s > 0


def test_a_poisoned_sequence_fails_alone(make_driver: MakeDriver, tiny_llama: Path, run_type: type) -> None:
    driver = make_driver(tiny_llama)
    clean = driver.run([run_type(PROMPT), run_type(PROMPT[::-1])])
    assert 50 not in PROMPT + clean[0] + clean[1]
    with torch.inference_mode():
        driver.executor._worker._decoder.weights.embedding[50] = math.nan
    poisoned = run_type([50, 1, 2], max_tokens=1, logprobs=LogprobParams(top_n=2))
    assert driver.run([run_type(PROMPT), poisoned, run_type(PROMPT[::-1])]) == [clean[0], [-1], clean[1]]
    assert poisoned.samples[0].logprobs is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(dtype: str, tiny_llama: Path, model: LlamaForCausalLM) -> None:
    executor = build(tiny_llama, model=ModelConfig(source="m", path=str(tiny_llama), dtype=dtype))
    assert executor.info.dtype == dtype
    options = LogprobParams(token_ids=tuple(range(120)))
    new = NewSequence(1, [3, 4], GREEDY, options, None, [], 0, 0, ())
    sample = executor.execute(StepPlan(1, [PlanItem(1, 0, PROMPT, [], (0,))], [new])).results[0].samples[0]
    expected = expected_logprobs(model, PROMPT)[-1].tolist()
    assert sample.logprobs.top_logprobs == pytest.approx(expected, abs=0.25 if dtype == "bfloat16" else 0.03)


def test_info_tells_what_was_built(tiny_llama: Path) -> None:
    info = build(tiny_llama).info
    assert (info.architecture, info.dtype, info.quantization) == ("LlamaForCausalLM", "float32", "none")
    assert (info.vocab_size, info.max_context_tokens, info.block_size, info.num_blocks) == (120, 256, 16, 64)
    assert info.kv_bytes == 2 * 2 * 64 * 16 * 2 * 8 * 4
    parameters = sum(parameter.numel() for parameter in LlamaForCausalLM.from_pretrained(tiny_llama).parameters())
    assert info.weight_bytes == 4 * parameters
    assert set(info.backends.values()) == {"reference"}


def test_a_dead_executor_stays_dead(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(worker: Worker, plan: StepPlan) -> StepResult:
        raise torch.OutOfMemoryError("out of memory")

    executor = build(tiny_llama)
    monkeypatch.setattr(Worker, "execute", fail)
    with pytest.raises(ExecutorDead, match="step 1 failed: out of memory"):
        executor.execute(StepPlan(1, []))
    with pytest.raises(ExecutorDead, match="was shut down"):
        executor.execute(StepPlan(2, []))
    executor.shutdown()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": DeviceConfig(kernel_backend="magic")}, "kernel backend 'magic'"),
        ({"cache": CacheConfig(dtype="int3")}, "kv-cache-dtype int3: kernel backend reference keeps float32"),
        ({"cache": CacheConfig(num_blocks=10**12)}, "cannot be allocated"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], message: str, tiny_llama: Path) -> None:
    with pytest.raises(StartupError, match=message):
        build(tiny_llama, **changes)


@pytest.mark.parametrize(("kind", "error"), [("q8", 0.2), ("q4", 1.5)])
def test_quantized_at_load(kind: str, error: float, tiny_llama: Path) -> None:
    """Log probabilities of all tokens stay within `error` of the float model's; the weights shrink."""
    options = LogprobParams(token_ids=tuple(range(120)))
    new = NewSequence(1, [3, 4], GREEDY, options, None, [], 0, 0, ())
    plan = StepPlan(1, [PlanItem(1, 0, PROMPT, [], (0,))], [new])
    float_model = build(tiny_llama)
    quantized = build(
        tiny_llama,
        model=ModelConfig(source="m", path=str(tiny_llama), quantization=kind),
        device=DeviceConfig(device="cpu", kernel_backend="auto"),
    )
    expected, got = (model.execute(plan).results[0].samples[0].logprobs for model in (float_model, quantized))
    assert got.top_logprobs == pytest.approx(expected.top_logprobs, abs=error)
    assert got.top_logprobs != expected.top_logprobs
    assert quantized.info.quantization == kind
    assert quantized.info.weight_bytes < float_model.info.weight_bytes / 2


def test_a_matrix_that_has_no_groups_of_32_is_not_quantized(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=40, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(StartupError, match="no multiple of the group size 32"):
        build(tmp_path, model=ModelConfig(source="m", path=str(tmp_path), quantization="q8"))
