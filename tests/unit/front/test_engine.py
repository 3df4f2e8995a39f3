"""FrontEngine without a core: what it sends, and what its generations make of what a core would say."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest

from inferd.config import EngineConfig, ModelConfig, SchedulerConfig
from inferd.errors import (
    ContextLengthExceeded,
    Draining,
    DuplicateRequest,
    EngineDead,
    InferdError,
    NotReady,
    NumericError,
    QueueFull,
    QueueTimeout,
)
from inferd.front.engine import FrontEngine
from inferd.front.exporter import FrontCollector
from inferd.front.generation import Generation
from inferd.front.metrics import FrontMetrics
from inferd.front.output import OutputDelta, OutputParams
from inferd.messages import (
    AbortChoice,
    AddRequest,
    ChoiceOutput,
    EngineStats,
    Failure,
    PromptOutput,
    Ready,
    StepOutputs,
    ToCore,
    Vocabulary,
)
from inferd.request import FinishReason, LogprobParams, Request, SamplingParams, StopParams
from inferd.step import RankTimings
from inferd.testing.byte_tokenizer import byte_tokenizer
from inferd.testing.fake_executor import fake_info
from inferd.testing.requests import Driver

TOKENIZER = byte_tokenizer()
PROMPT = PromptOutput(num_cached_tokens=0, queue_s=0.0, prefill_s=0.0, prompt_logprobs=[])
READY = Ready(
    max_context_tokens=64,
    num_blocks=8,
    block_size=16,
    vocab_size=256,
    architecture="fake",
    dtype="float32",
    quantization="",
    backends={},
    weight_bytes=0,
    kv_bytes=0,
    phases={},
)


def stats(**values: int) -> EngineStats:
    zero = dict.fromkeys(EngineStats.__struct_fields__, 0)
    return EngineStats(**(zero | {"blocks_total": 8} | values))


class Front:
    """A FrontEngine and the messages that it sent."""

    def __init__(self, **scheduler: Any) -> None:
        self.sent: list[ToCore] = []
        self.engine = FrontEngine(SchedulerConfig(**scheduler), FrontMetrics())
        self.engine.attach(self.sent.append, lambda: "weights 50%")
        self.engine.on_ready(READY)

    def generate(self, request_id: str = "r", **fields: Any) -> Generation:
        values: dict[str, Any] = {"stop": StopParams(max_tokens=10), "sampling": SamplingParams(seed=3)} | fields
        key = next(self.engine.keys)
        request = Request(key=key, request_id=request_id, prompt_token_ids=list(b"abc"), arrival=1.0, **values)
        return self.engine.generate(request, OutputParams(), TOKENIZER)

    def step(self, *outputs: ChoiceOutput) -> None:
        self.engine.on_outputs(StepOutputs(list(outputs), stats(steps=1, step_tokens=1)))

    def restart(self) -> None:
        self.engine.on_lost("was killed")
        self.engine.on_ready(READY)


def out(text: bytes, key: int = 1, choice: int = 0, finish: FinishReason | None = None, **fields: Any) -> ChoiceOutput:
    return ChoiceOutput(key, choice, list(text), [], finish, **fields)


def read(generation: Generation) -> list[OutputDelta]:
    """All deltas of a generation whose outputs are all there."""

    async def all_of() -> list[OutputDelta]:
        async with asyncio.timeout(5):
            with generation:
                return [delta async for delta in generation]

    return asyncio.run(all_of())


def test_outputs_that_came_together_are_one_delta() -> None:
    front = Front()
    generation = front.generate()
    front.step(out(b"x", prompt=PROMPT))
    front.step(out(b"y"))
    front.step(out(b"z", finish=FinishReason.MAX_TOKENS))
    (delta,) = read(generation)

    assert delta.choices[0].text == "xyz"
    assert delta.prompt is not None
    assert delta.usage is not None
    assert (delta.usage.prompt_tokens, delta.usage.completion_tokens) == (3, 3)
    assert [type(message) for message in front.sent] == [AddRequest]
    assert front.engine.admission.live == 0


def test_leaving_early_aborts_once() -> None:
    front = Front()
    generation = front.generate()
    generation.close()
    generation.close()

    assert front.sent[1:] == [AbortChoice(1)]
    assert front.engine.metrics.finished["abort"] == 1
    assert not front.engine.busy


def test_a_stop_string_aborts_the_choice_and_late_output_is_dropped() -> None:
    front = Front()
    stop = StopParams(max_tokens=10, stop_strings=("y",))
    generation = front.generate(num_choices=2, stop=stop)
    front.step(out(b"xyz", prompt=PROMPT), out(b"a", choice=1))

    async def scenario() -> list[OutputDelta]:
        with generation:
            first = await anext(generation)
            front.step(out(b"late"), out(b"b", choice=1, finish=FinishReason.MAX_TOKENS))
            return [first, *[delta async for delta in generation]]

    deltas = asyncio.run(scenario())
    assert [[choice.text for choice in delta.choices] for delta in deltas] == [["x", "a"], ["b"]]
    assert front.sent[1:] == [AbortChoice(1, 0)]


@pytest.mark.parametrize(("reason", "error"), [("NUMERIC_ERROR", NumericError), ("QUEUE_TIMEOUT", QueueTimeout)])
def test_an_error_comes_after_what_was_received_before(reason: str, error: type[InferdError]) -> None:
    front = Front()
    generation = front.generate()
    front.step(out(b"x", prompt=PROMPT))
    front.step(out(b"", error=reason))

    async def scenario() -> str:
        with generation:
            text = (await anext(generation)).choices[0].text
            with pytest.raises(error):
                await anext(generation)
            return text

    assert asyncio.run(scenario()) == "x"
    assert front.engine.metrics.finished["error"] == 1


def test_admission_refuses_what_is_too_much_or_twice() -> None:
    front = Front(max_num_seqs=1, max_waiting=1)
    first = front.generate()
    with pytest.raises(DuplicateRequest):
        front.generate()
    front.generate(request_id="s")
    with pytest.raises(QueueFull):
        front.generate(request_id="t")
    first.close()
    front.generate(request_id="r")
    assert front.engine.metrics.rejected_requests == 1


def test_a_lost_core_is_handed_what_is_left() -> None:
    front = Front()
    generation = front.generate(prompt_logprobs=LogprobParams(), queue_deadline=99.0)
    front.step(out(b"xy", prompt=PROMPT))
    front.restart()
    again = front.sent[-1]

    assert isinstance(again, AddRequest)
    assert bytes(again.request.prompt_token_ids) == b"abcxy"
    assert again.request.resumed_tokens == 2
    assert again.request.prompt_logprobs is None
    assert again.request.queue_deadline is None
    front.step(out(b"z", prompt=PROMPT, finish=FinishReason.MAX_TOKENS))
    (delta,) = read(generation)
    assert delta.choices[0].text == "xyz"
    assert delta.usage is not None
    assert delta.usage.prompt_tokens == 3


def test_several_choices_are_replayed_and_their_known_part_left_out() -> None:
    front = Front()
    generation = front.generate(num_choices=2)
    front.step(out(b"xy", finish=FinishReason.EOS, prompt=PROMPT), out(b"pq", choice=1))
    front.restart()
    assert front.sent[-1] == front.sent[0]
    front.step(out(b"x", prompt=PROMPT), out(b"p", choice=1))
    front.step(out(b"y"), out(b"qr", choice=1, finish=FinishReason.MAX_TOKENS))

    assert [choice.token_ids for choice in read(generation)[0].choices] == [list(b"xy"), list(b"pqr")]
    assert front.sent.count(AbortChoice(1, 0)) == 1  # the finished choice is not run again to its end


def test_a_replay_that_differs_is_not_spliced() -> None:
    front = Front()
    generation = front.generate(num_choices=2)
    front.step(out(b"x", prompt=PROMPT), out(b"p", choice=1))
    front.restart()
    front.step(out(b"x"), out(b"Q", choice=1))

    with pytest.raises(EngineDead):
        read(generation)


def test_a_request_is_resumed_twice_at_most() -> None:
    front = Front()
    generation = front.generate()
    for _ in range(2):
        front.restart()
    assert front.engine.busy
    front.restart()

    with pytest.raises(EngineDead, match="3 times"):
        read(generation)
    assert front.engine.metrics.engine_restarts == 3


def test_states_refuse_with_their_own_error() -> None:
    front = Front()
    changes: list[bool] = []
    front.engine.on_change(lambda: changes.append(front.engine.serving))
    front.engine.on_lost("was killed")
    with pytest.raises(NotReady, match="weights 50%"):
        front.generate()
    front.engine.on_ready(READY)
    front.engine.on_dead("died 5 times")
    with pytest.raises(EngineDead):
        front.generate()
    front.engine.gate.drain("over")
    with pytest.raises(Draining):
        front.generate()
    assert changes == [True, False, True, False, False]


def test_what_is_not_worth_waiting_for_ends_at_once() -> None:
    """A group of workers takes long to start again."""
    front = Front()
    generation = front.generate()
    front.step(out(b"x"))
    front.engine.on_lost("was killed", may_resume=False)
    with pytest.raises(EngineDead, match="was killed and starts again") as caught:
        read(generation)
    assert caught.value.retry_after_s is not None
    front.engine.on_ready(READY)
    assert sum(isinstance(message, AddRequest) for message in front.sent) == 1, "it was not asked for again"


def test_timings_of_ranks_are_counters_by_rank_and_stage() -> None:
    front = Front()
    ranks = [RankTimings(0, 0, 7, 1.5, 0.25), RankTimings(1, 1, 7, 1.0, 0.75)]
    front.engine.on_outputs(StepOutputs([], stats(steps=7), ranks))
    collector = FrontCollector(front.engine.metrics, EngineConfig(model=ModelConfig(source="m", path="m")), "m")
    samples = {
        (sample.name, sample.labels["rank"], sample.labels["stage"]): sample.value
        for family in collector.collect()
        for sample in family.samples
        if "rank" in sample.labels
    }
    assert samples["inferd_rank_compute_seconds_total", "0", "0"] == 1.5
    assert samples["inferd_rank_wait_seconds_total", "1", "1"] == 0.75
    assert samples["inferd_rank_steps_total", "1", "1"] == 7
    front.engine.on_lost("was killed")
    assert front.engine.metrics.ranks == []


def test_totals_do_not_fall_when_the_core_restarts() -> None:
    front = Front()
    metrics = front.engine.metrics
    front.engine.on_outputs(StepOutputs([], stats(preemptions=3, steps=10)))
    front.restart()
    assert (metrics.engine_total("preemptions"), metrics.engine_total("steps")) == (3, 10)
    front.engine.on_outputs(StepOutputs([], stats(preemptions=1, steps=2)))
    assert (metrics.engine_total("preemptions"), metrics.engine_total("steps")) == (4, 12)


def test_every_core_hears_of_the_vocabulary_before_any_request() -> None:
    front = Front()
    vocabulary = Vocabulary([b"a"], [], [])
    front.engine.introduce(vocabulary)
    front.generate()
    assert front.sent[0] == vocabulary

    front.sent.clear()
    front.engine.on_lost("died")
    front.engine.on_ready(READY)
    assert front.sent[0] == vocabulary
    assert isinstance(front.sent[1], AddRequest)


@pytest.mark.parametrize("failure", get_args(Failure))
def test_every_failure_of_the_core_has_an_error_of_its_own(failure: Failure) -> None:
    front = Front()
    generation = front.generate()
    front.step(out(b"", error=failure))
    with pytest.raises(InferdError) as error:
        read(generation)
    assert error.value.reason == failure
    assert failure not in error.value.message


def test_a_prompt_that_a_new_core_has_no_memory_for_is_too_long() -> None:
    """The request was checked against the old core's context, and came to the new one."""
    front = Front()
    generation = front.generate()
    (add,) = front.sent
    assert isinstance(add, AddRequest)
    core = Driver(fake_info(num_blocks=1, block_size=2, vocab_size=256))
    core.add(add.request)
    front.step(*core.scheduler.expired(core.now))
    with pytest.raises(ContextLengthExceeded, match="longer than the context"):
        read(generation)
