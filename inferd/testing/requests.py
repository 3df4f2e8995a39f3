"""Requests with defaults for tests, and a driver that runs a scheduler against an executor to the end."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from inferd.config import CacheConfig, SchedulerConfig
from inferd.executor.base import Executor, ExecutorInfo
from inferd.messages import ChoiceOutput, PromptOutput
from inferd.request import FinishReason, Request, SamplingParams, StopParams
from inferd.scheduler.limits import Capacity
from inferd.scheduler.scheduler import Scheduler
from inferd.step import StepPlan, TokenLogprobs
from inferd.testing.fake_executor import FakeExecutor, fake_info


def make_request(
    key: int,
    prompt: Sequence[int],
    *,
    max_tokens: int = 4,
    seed: int = 0,
    stop: StopParams | None = None,
    **fields: object,
) -> Request:
    """A greedy request; fields are those of Request."""
    values: dict[str, object] = {
        "key": key,
        "request_id": f"request-{key}",
        "prompt_token_ids": list(prompt),
        "sampling": SamplingParams(temperature=0.0, seed=seed),
        "stop": stop or StopParams(max_tokens=max_tokens),
        "arrival": float(key),
    }
    return Request(**(values | fields))  # type: ignore[arg-type]  # the fields are checked by the tests' own use


@dataclass
class Collected:
    """Everything one choice was sent."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason | None = None
    error: str | None = None
    prompt: PromptOutput | None = None
    num_ends: int = 0

    def add(self, output: ChoiceOutput) -> None:
        assert not self.num_ends, f"output after the end: {output}"
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.finish = output.finish
        self.error = output.error
        self.prompt = output.prompt or self.prompt
        self.num_ends += output.finish is not None or output.error is not None


class Driver:
    """A scheduler and a fake executor, one step at a time on a clock that stands still unless it is moved."""

    def __init__(
        self,
        info: ExecutorInfo | None = None,
        config: SchedulerConfig | None = None,
        cache: CacheConfig | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.executor = executor or FakeExecutor(info or fake_info())
        self.scheduler = Scheduler(config or SchedulerConfig(), cache or CacheConfig(), capacity(self.executor.info))
        self.outputs: defaultdict[tuple[int, int], Collected] = defaultdict(Collected)
        self.plans: list[StepPlan] = []
        self._in_flight: deque[StepPlan] = deque()
        self.now = 1000.0

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add(request)

    def step(self) -> StepPlan | None:
        """Expire, schedule what the pipeline takes, commit the oldest plan, audit. Returns the last plan scheduled."""
        self._collect(self.scheduler.expired(self.now))
        plan = None
        while len(self._in_flight) < self.executor.info.max_in_flight:
            plan = self.scheduler.schedule(self.now)
            if plan is None:
                break
            self.plans.append(plan)
            self._in_flight.append(plan)
            self.executor.submit(plan)
        if self._in_flight:
            oldest = self._in_flight.popleft()
            self._collect(self.scheduler.commit(oldest, self.executor.collect(), self.now))
        self.scheduler.check()
        return plan

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left."""
        for _ in range(max_steps):
            if not self.scheduler.has_work and not self._in_flight:
                return
            self.step()
        raise AssertionError(f"work is left after {max_steps} steps")

    def choice(self, key: int, choice: int = 0) -> Collected:
        return self.outputs[key, choice]

    def _collect(self, outputs: list[ChoiceOutput]) -> None:
        for output in outputs:
            self.outputs[output.key, output.choice].add(output)


def capacity(info: ExecutorInfo) -> Capacity:
    return Capacity(
        info.num_blocks,
        info.block_size,
        info.max_context_tokens,
        info.vocab_size,
        info.pipeline_depth,
        looks_ahead=info.looks_ahead,
        windows=info.windows,
    )
