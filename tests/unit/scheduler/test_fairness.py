"""One key floods, another asks now and then: on a virtual clock on which a step takes as long as its tokens."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from dataclasses import dataclass, field

import pytest

from inferd.account import BURST, MAX_REMEMBERED, Accounts
from inferd.config import CacheConfig, SchedulerConfig
from inferd.request import Request, Tenant
from inferd.scheduler.queues import LazyHeap
from inferd.scheduler.scheduler import Scheduler
from inferd.step import SampledToken, SequenceResult, StepPlan, StepResult
from inferd.testing.fake_executor import fake_info, solo_tokens
from inferd.testing.requests import Driver, capacity, make_request

STEP_S, TOKEN_S = 0.010, 0.0005  # as on a small CPU: a prompt of 300 takes 0.16 s
FLOOD, QUIET = Tenant("flood"), Tenant("quiet")


@dataclass
class Simulation:
    """Callers in closed loops against a scheduler; nothing is computed, every token is 1."""

    num_blocks: int = 4000
    seed: int = 0
    now: float = 1000.0
    first_tokens: dict[int, float] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        config = SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=512)
        info = fake_info(self.num_blocks, 16, 2048)
        self.scheduler = Scheduler(config, CacheConfig(), capacity(info))

    def ask(self, tenant: Tenant, prompt: int, max_tokens: int) -> int:
        key = len(self.requests)
        tokens = self.rng.choices(range(1000), k=prompt)
        self.requests[key] = make_request(key, tokens, max_tokens=max_tokens, tenant=tenant, arrival=self.now)
        self.scheduler.add(self.requests[key])
        return key

    def flood(self) -> None:
        self.ask(FLOOD, self.rng.randint(100, 500), self.rng.randint(50, 150))

    def step(self) -> StepPlan:
        """One step, and another request of the flood for each that ended."""
        plan = self.scheduler.schedule(self.now)
        assert plan is not None
        self.now += STEP_S + TOKEN_S * plan.num_tokens
        results = [SequenceResult(item.seq_id, [SampledToken(1) for _ in item.choices]) for item in plan.items]
        for output in self.scheduler.commit(plan, StepResult(plan.step, results, 0.0), self.now):
            self.first_tokens.setdefault(output.key, self.now)
            if output.finish is not None:
                self.ended.append(output.key)
                if self.requests[output.key].tenant == FLOOD:
                    self.flood()
        return plan

    def one_at_a_time(self, count: int, prompt: int) -> list[float]:
        """Times to first token of so many requests of the quiet key, each after a pause, at any moment of a step."""
        times = []
        for _ in range(count):
            came = self.now + self.rng.uniform(0.05, 0.5)
            while self.scheduler.has_work and self.now < came:
                self.step()
            self.now = max(self.now, came)
            key = self.ask(QUIET, prompt, 8)
            while key not in self.ended:
                self.step()
            times.append(self.first_tokens[key] - came)
        return times


def p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def flooded(num_blocks: int) -> Simulation:
    simulation = Simulation(num_blocks)
    for _ in range(200):
        simulation.flood()
    for _ in range(200):
        simulation.step()
    return simulation


@pytest.mark.parametrize("num_blocks", [4000, 700], ids=["enough blocks", "blocks for a third of the seats"])
@pytest.mark.parametrize("prompt", [300, 1000])
def test_a_flood_of_one_key_hardly_delays_another(prompt: int, num_blocks: int) -> None:
    idle = p95(Simulation(num_blocks).one_at_a_time(60, prompt))
    simulation = flooded(num_blocks)
    began, steps = simulation.now, simulation.scheduler.stats().computed_tokens
    busy = p95(simulation.one_at_a_time(60, prompt))
    assert busy < 2 * idle
    alone = flooded(num_blocks)
    until, before = alone.now + simulation.now - began, alone.scheduler.stats().computed_tokens
    while alone.now < until:
        alone.step()
    together = simulation.scheduler.stats().computed_tokens - steps
    assert together > 0.9 * (alone.scheduler.stats().computed_tokens - before), "what is shared is as much as before"


def computed_by_key(drive: Driver, requests: list[Request]) -> Counter[str]:
    """Tokens computed for each key; sequence ids are the requests' order."""
    computed: Counter[str] = Counter()
    for item in (item for plan in drive.plans for item in plan.items):
        computed[requests[item.seq_id - 1].tenant.key] += len(item.token_ids)
    return computed


def test_two_floods_get_as_many_tokens_whatever_their_requests_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferd.account.BURST", 64.0)
    drive = Driver(fake_info(2000, 4, 256), SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=32))
    requests = [make_request(key, [key] * 100, max_tokens=4, tenant=FLOOD) for key in range(60)]
    requests += [make_request(key, [key] * 8, max_tokens=30, tenant=QUIET) for key in range(60, 260)]
    drive.add(*requests)
    for _ in range(200):
        drive.step()
    computed = computed_by_key(drive, requests)
    assert 0.8 < computed["flood"] / computed["quiet"] < 1.25


def test_a_key_gains_nothing_by_naming_many_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferd.account.BURST", 64.0)
    drive = Driver(fake_info(2000, 4, 256), SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=32))
    requests = [make_request(key, [key] * 8, max_tokens=30, tenant=Tenant("many", str(key))) for key in range(150)]
    requests += [make_request(key, [key] * 8, max_tokens=30, tenant=Tenant("one")) for key in range(150, 300)]
    drive.add(*requests)
    for _ in range(200):
        drive.step()
    computed = computed_by_key(drive, requests)
    assert 0.8 < computed["many"] / computed["one"] < 1.25


def test_callers_of_one_key_share_what_it_gets() -> None:
    drive = Driver(fake_info(2000, 4, 256), SchedulerConfig(max_num_seqs=4))
    drive.add(*[make_request(key, [key] * 8, max_tokens=30, tenant=Tenant("gateway", "flood")) for key in range(50)])
    drive.step()
    drive.add(make_request(50, [1, 2], max_tokens=1, tenant=Tenant("gateway", "quiet")))
    drive.step()
    assert drive.choice(50).num_ends == 1


def test_who_makes_way_goes_on_as_if_nothing_had_happened() -> None:
    drive = Driver(fake_info(64, 4, 128), SchedulerConfig(max_num_seqs=2))
    drive.add(*[make_request(key, [key] * 6, max_tokens=20, tenant=FLOOD) for key in range(3)])
    drive.step()
    drive.add(make_request(3, [9] * 6, max_tokens=20, tenant=QUIET))
    plan = drive.step()
    assert plan is not None
    assert plan.dropped == [2]
    assert {item.seq_id for item in plan.items} == {1, 4}
    drive.add(make_request(4, [8] * 6, max_tokens=20, tenant=QUIET))
    plan = drive.step()
    assert plan is not None
    assert plan.dropped == [], "each has one of the two seats"
    drive.run()
    for key, prompt in ((0, 0), (1, 1), (2, 2), (3, 9), (4, 8)):
        assert drive.choice(key).token_ids == solo_tokens([prompt] * 6, 0, 0, 20, 1000)


def test_a_higher_priority_comes_before_fairness() -> None:
    drive = Driver(fake_info(64, 4, 128), SchedulerConfig(max_num_seqs=1))
    drive.add(make_request(0, [1] * 6, max_tokens=9, tenant=FLOOD, priority=1), make_request(1, [2], tenant=QUIET))
    drive.run()
    assert [item.seq_id for plan in drive.plans for item in plan.items] == [1] * 9 + [2] * 4


def test_an_account_that_comes_back_owes_what_it_had() -> None:
    accounts = Accounts()
    flood, quiet = accounts.enter(FLOOD), accounts.enter(QUIET)
    for account in (flood, quiet):
        account.choose()
    quiet.charge(int(3 * BURST))
    flood.charge(10)
    quiet.leave()
    quiet = accounts.enter(QUIET)
    assert flood.is_behind(quiet)
    flood.charge(int(4 * BURST))
    flood.choose()
    quiet.leave()
    quiet = accounts.enter(QUIET)
    assert quiet.is_behind(flood)
    quiet.charge(int(BURST) + 1)
    assert flood.is_behind(quiet), "what it did not ask for in time is not saved up"


def test_accounts_that_left_are_forgotten() -> None:
    accounts = Accounts()
    stays = accounts.enter(FLOOD)
    for number in range(3 * MAX_REMEMBERED):
        account = accounts.enter(Tenant(str(number)))
        account.charge(1)
        account.leave()
    assert accounts.num_live == 1
    assert stays.parent is not None
    assert stays.parent.parent is not None
    assert len(stays.parent.parent._debts) == MAX_REMEMBERED
    stays.leave()
    assert len(stays.parent.parent._debts) == 0


def heap_looks(waiting: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many heap entries a hundred steps look at that leave so many waiting."""
    simulation = Simulation()
    for number in range(waiting):
        simulation.ask(FLOOD if number % 2 else QUIET, 8, 400)
    for _ in range(20):
        simulation.step()
    looks = 0
    first = LazyHeap._first

    def counted(heap: LazyHeap[object]) -> object:
        nonlocal looks
        looks += 1
        return first(heap)

    with monkeypatch.context() as patch:
        patch.setattr(LazyHeap, "_first", counted)
        for _ in range(100):
            simulation.step()
    return looks


def test_a_step_costs_the_same_whatever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert heap_looks(20_000, monkeypatch) <= heap_looks(200, monkeypatch) + 10
