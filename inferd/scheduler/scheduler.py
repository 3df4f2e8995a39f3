"""Scheduler: requests in, plans out, results back in; the one face of this package.

Every request ends in exactly one finish or one error per choice, or silently when it is aborted. Plans are committed
in the order in which they were scheduled; until then anything may happen, the next schedule() included: a plan never
holds a sequence that is in an uncommitted one, unless it looks ahead (planner).
"""

from __future__ import annotations

from inferd.config import CacheConfig, SchedulerConfig
from inferd.kv.windows import create_manager
from inferd.messages import ChoiceOutput, EngineStats, Failure
from inferd.request import Request
from inferd.scheduler.committer import Committer
from inferd.scheduler.limits import Capacity, cache_groups, step_limits
from inferd.scheduler.planner import Planner
from inferd.scheduler.registry import Registry
from inferd.scheduler.roster import Roster
from inferd.sequence import Matcher, Sequence
from inferd.step import StepPlan, StepResult


class Scheduler:
    def __init__(self, config: SchedulerConfig, cache: CacheConfig, capacity: Capacity) -> None:
        self.limits = step_limits(config, capacity)
        prefix_caching = cache.prefix_caching and not capacity.whole_prompts
        self._kv = create_manager(cache_groups(config, capacity), capacity.num_blocks, prefix_caching)
        self._roster = Roster(self._kv, self.limits.seats)
        self._registry = Registry(self._roster, self.limits)
        self._planner = Planner(self._roster, self.limits)
        self._committer = Committer(self._registry, self._roster)
        self._scheduled_at: dict[int, float] = {}  # uncommitted steps
        self._steps = 0
        self._step_tokens = 0
        self._computed_tokens = 0
        self._last_step_s = 0.0

    @property
    def has_work(self) -> bool:
        """Whether there is something to schedule or to report."""
        return self._registry.has_work

    def add(self, request: Request, matcher: Matcher | None = None) -> None:
        """Queue a request; matcher: of its constraint. One that can never run ends with an error in the next expired().

        Raises ValueError when a request of that key is live.
        """
        self._registry.add(request, matcher)

    def refuse(self, request: Request, reason: Failure) -> None:
        """End a request that was never added with an error, in the next expired()."""
        self._registry.refuse(request, reason)

    def abort(self, key: int, choice: int | None = None) -> None:
        """Stop one choice, or all (None), without an output. What has ended already is no error."""
        self._registry.abort(key, choice)

    def expired(self, now: float) -> list[ChoiceOutput]:
        """End what has run out of time, and report all that ended outside a step. Call it before schedule()."""
        return self._registry.expired(now)

    def schedule(self, now: float) -> StepPlan | None:
        """The next step; None when nothing is live that is not in a step already."""
        plan = self._planner.plan(now, len(self._scheduled_at))
        if plan is not None:
            self._scheduled_at[plan.step] = now
        return plan

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[ChoiceOutput]:
        """Take over what the executor computed; one result per item, in the plan's order.

        Raises ValueError when the result is not that of the plan.
        """
        outputs = self._committer.commit(plan, result, now)
        self._steps += 1
        self._step_tokens = plan.num_tokens
        self._computed_tokens += self._step_tokens
        self._last_step_s = now - self._scheduled_at.pop(plan.step)
        return outputs

    def clear_prefix_cache(self, salt: str | None = None) -> int:
        """Forget cached prefixes of salt (None: all). Returns how many blocks were forgotten."""
        return self._kv.clear(salt)

    @property
    def holds_unused_memory(self) -> bool:
        """Whether reclaim() will find something, now or at a later call."""
        return self._kv.pool.holds_unused

    def reclaim(self, calls: int) -> list[tuple[int, int]]:
        """Forget cached prefixes that nothing has used for the last `calls` calls. Returns the blocks [first, end) that
        hold nothing any more, for the executor to give their memory back before the next plan."""
        return self._kv.pool.reclaim(calls)

    def check(self) -> None:
        """Audit blocks against sequences. Raises AuditError. O(blocks): for tests, and for when nothing runs."""
        self._kv.check(self._roster.sequences.values())

    def sequences(self) -> list[Sequence]:
        """All live ones, to look at."""
        return list(self._roster.sequences.values())

    def num_cached_blocks(self) -> int:
        """Blocks that a prefix lookup can find."""
        return self._kv.pool.num_cached

    def stats(self) -> EngineStats:
        pool, roster = self._kv.pool, self._roster
        return EngineStats(
            running=len(roster.running),
            waiting=len(roster.waiting),
            waiting_prompt_tokens=roster.waiting.num_tokens,
            blocks_used=pool.num_used,
            blocks_total=pool.num_blocks,
            steps=self._steps,
            step_tokens=self._step_tokens,
            preemptions=roster.num_preemptions,
            prefix_queries=self._kv.prefix_queries,
            prefix_hits=self._kv.prefix_hits,
            computed_tokens=self._computed_tokens,
            last_step_s=self._last_step_s,
            draft_tokens=self._committer.draft_tokens,
            accepted_draft_tokens=self._committer.accepted_draft_tokens,
        )
