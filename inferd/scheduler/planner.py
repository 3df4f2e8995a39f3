"""Planner: chooses the tokens of a step. There is no prefill and no decode phase: each sequence gets as many of its
uncomputed tokens as the budget leaves; one with a single uncomputed token is what others call a decode.

Order: running sequences with one token first (they keep their pace whatever arrives), then running ones with more,
then waiting ones; but a waiting one goes before running ones of a lower priority, or of an account that was served
more. It takes their seats or blocks as well when it lacks them: from a lower priority, or, within its own, from an
account that holds no fewer seats even then. Prompts of accounts that were served more may also stay out of the step
that completes its own. Each token of a plan is charged to its account.

Where the executor works on several plans at a time (a pipeline), a plan leaves out what is in flight and takes no more
than its share of the rest, so that there is something to plan meanwhile. The cost is that of the tokens chosen and of
the sequences that run: neither the queue nor a prompt nor the pool is walked.

Where the executor looks ahead, the next plan is made while one runs: each of its sequences goes on with the token that
is being drawn, PENDING. A sequence that the token ends is in the next plan for nothing; its result is left out. When
what a sequence draws next depends on the pending token on this side (a constraint, penalties, bad words) or is no
single token (a chunk of a prompt, several choices), nothing is planned before the result is there.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import Counter

from inferd.account import Account
from inferd.scheduler.draft import NO_BLOCKS, Draft
from inferd.scheduler.limits import StepLimits
from inferd.scheduler.queues import fair_rank
from inferd.scheduler.roster import Roster
from inferd.scheduler.speculation import add_guesses, read_tokens
from inferd.sequence import Sequence, SequenceStatus
from inferd.step import PENDING, PlanItem, StepPlan

SHARED_S = 60.0  # after several accounts had sequences
PATIENT_SHARE = 4  # of a step's tokens the prompts of those that have had their turn get one in so many, then
NO_MASKS: dict[int, bytes] = {}


class Planner:
    def __init__(self, roster: Roster, limits: StepLimits) -> None:
        self._roster = roster
        self._limits = limits
        self._steps = 0
        self._refused: tuple[int, int] | None = None  # (seq_id, room) of the last refused admission
        self._last_items: list[PlanItem] = []  # of the last plan
        self._yielded = False  # in the last plan
        self._shared_until = 0.0

    def plan(self, now: float, in_flight: int) -> StepPlan | None:
        """The next step, or None when no sequence is left that is not in one of the in_flight plans."""
        looks_ahead = self._limits.looks_ahead and in_flight > 0
        if looks_ahead and not self._can_look_ahead():
            return None
        draft = Draft(self._steps + 1, self._limits.token_budget, self._room(), self._patience(now))
        self._seat_urgent(now)
        for sequence in self._advance_running(draft, looks_ahead):
            self._admit_waiting(draft, now, ahead_of=sequence)
            # The one before may have preempted it.
            is_running = sequence.status is SequenceStatus.RUNNING
            if draft.room > 0 and is_running and not self._yields(sequence, draft):
                self._add(draft, sequence)
        self._admit_waiting(draft, now)
        self._yielded = draft.has_yielded
        if self._limits.speculative is not None:
            read_tokens(draft, self._roster, self._limits.speculative)
            if not draft.longer and not looks_ahead:
                add_guesses(draft, self._roster, self._limits.speculative)
        self._roster.kv.end_plan()
        items = draft.single + draft.longer
        if not items:
            assert in_flight or not self._roster.sequences, "sequences are left, and none of them can go on"
            return None
        self._steps = draft.step
        self._last_items = items
        self._charge(items)
        new, dropped = self._roster.take_news()
        return StepPlan(self._steps, items, new, draft.copies, dropped, self._masks(items))

    def _charge(self, items: list[PlanItem]) -> None:
        sequences = self._roster.sequences
        if self._roster.accounts.contended:
            for item in items:
                sequences[item.seq_id].account.charge(len(item.token_ids))
        else:  # all are of one account
            sequences[items[0].seq_id].account.charge(sum([len(item.token_ids) for item in items]))

    def _masks(self, items: list[PlanItem]) -> dict[int, bytes]:
        """What the sampling items may draw that are constrained."""
        constrained = self._roster.constrained
        if not constrained:
            return NO_MASKS
        sampling = (item.seq_id for item in items if item.choices and item.seq_id in constrained)
        return {seq_id: constrained[seq_id].mask() for seq_id in sampling}

    def _room(self) -> int:
        """How many sequences a plan takes: an even share where several plans are in flight."""
        depth = self._limits.pipeline_depth
        if depth == 1:
            return sys.maxsize
        candidates = min(len(self._roster.running) + len(self._roster.waiting), self._limits.seats)
        return max(-(-candidates // depth), 1)

    def _patience(self, now: float) -> int:
        """How many tokens a step takes of prompts whose accounts have had their turn. Where several accounts ask now
        and then, such a step must be short: it is what the next one waits for that comes."""
        if self._roster.accounts.contended:
            self._shared_until = now + SHARED_S
        budget = self._limits.token_budget
        is_shared = self._limits.chunked_prefill and now < self._shared_until
        return max(budget // PATIENT_SHARE, 1) if is_shared else budget

    def _can_look_ahead(self) -> bool:
        """Whether each sequence of the last plan goes on with one token that nobody here needs to know."""
        for item in self._last_items:
            sequence = self._roster.sequences.get(item.seq_id)
            if sequence is None or not sequence.in_flight:
                continue  # it ended or was preempted: no later plan can hold it in this one's place
            sampling = sequence.request.sampling
            if len(item.choices) != 1 or item.guesses or sequence.matcher is not None or sampling.needs_history:
                return False
        return True

    def _look_ahead(self, sequence: Sequence, draft: Draft) -> None:
        """The token that the plan in flight draws, unless it is the last one by its number."""
        position = sequence.num_tokens
        if not sequence.in_flight or sequence.ahead or position + 1 >= sequence.max_tokens:
            return
        blocks = NO_BLOCKS
        if position >= sequence.num_slots:
            growth = self._roster.grow(sequence, position)
            if growth is None:
                return
            assert not growth.copies, "a position after one that is being written is in a block of its own"
            blocks = growth.new_block_ids
        draft.single.append(PlanItem(sequence.seq_id, position, [PENDING], blocks, sequence.choices))
        sequence.ahead = draft.step

    def _advance_running(self, draft: Draft, looks_ahead: bool) -> list[Sequence]:
        """One token for each running sequence that lacks one. Returns those that lack more, by turns."""
        longer: list[Sequence] = []
        single, room, step = draft.single, draft.room, draft.step
        # Whoever finds no block takes it from the end of the list: from nobody that this loop has passed.
        for sequence in self._roster.running.sequences:
            if sequence.in_flight or len(single) >= room:
                if looks_ahead:
                    self._look_ahead(sequence, draft)
                continue
            start = sequence.num_computed_tokens
            tokens = sequence.token_ids
            if len(tokens) - start != 1:
                longer.append(sequence)
            elif start < sequence.num_slots:
                single.append(PlanItem(sequence.seq_id, start, [tokens[start]], NO_BLOCKS, sequence.choices))
                sequence.in_flight = step
            else:
                self._advance_into_new_slot(sequence, draft)
        draft.budget -= len(single)
        draft.room -= len(single)
        return sorted(longer, key=fair_rank)

    def _advance_into_new_slot(self, sequence: Sequence, draft: Draft) -> None:
        growth = self._roster.grow(sequence, sequence.num_computed_tokens)
        if growth is None:
            return
        draft.copies += growth.copies
        start = sequence.num_computed_tokens
        item = PlanItem(sequence.seq_id, start, [sequence.token_ids[start]], growth.new_block_ids, sequence.choices)
        draft.single.append(item)
        sequence.in_flight = draft.step

    def _admit_waiting(self, draft: Draft, now: float, ahead_of: Sequence | None = None) -> None:
        """Waiting sequences in strict order: one that does not fit holds back those behind it. Only those whose turn is
        before that of a running one, if it is given."""
        waiting = self._roster.waiting
        while (sequence := waiting.peek()) is not None and self._may_start(sequence, draft):
            if (ahead_of is not None and not comes_before(sequence, ahead_of)) or self._yields(sequence, draft):
                return
            if not self._admit(sequence, now):
                return
            if not self._add(draft, sequence):
                return

    def _add(self, draft: Draft, sequence: Sequence) -> bool:
        """Put what the step has left for a sequence into the plan, if it has anything."""
        num_tokens = self._share(sequence, draft)
        if not num_tokens:
            return False
        blocks = self._roster.extend(sequence, sequence.num_computed_tokens + num_tokens, draft.step)
        if blocks is None:
            return False
        draft.add(sequence, num_tokens, blocks)
        return True

    def _yields(self, sequence: Sequence, draft: Draft) -> bool:
        """Whether a prompt stays out of a step that brings an account, which was served less, its first token: that one
        shall not wait longer for it. Not in two steps in a row, so that no prompt stands still."""
        first = draft.completed
        if self._yielded or first is None or not first.is_behind(sequence.account):
            return False
        draft.has_yielded = True
        return True

    def _admit(self, sequence: Sequence, now: float) -> bool:
        """Admission; one that was refused for lack of blocks looks up its prefix again only when there is more room."""
        if not self._roster.running.has_seat(sequence):
            return False
        room = self._roster.room
        if self._refused is not None and self._refused[0] == sequence.seq_id and room <= self._refused[1]:
            return False
        admitted = self._roster.admit(sequence, now)
        self._refused = None if admitted else (sequence.seq_id, room)
        return admitted

    def _may_start(self, sequence: Sequence, draft: Draft) -> bool:
        if draft.room <= 0:
            return False
        if self._limits.chunked_prefill:
            return self._budget_for(sequence, draft) > 0
        return not draft.has_prompt or sequence.num_tokens <= draft.budget

    def _share(self, sequence: Sequence, draft: Draft) -> int:
        """How many of its tokens a sequence computes in this step.

        Without chunked prefill a prompt runs whole: within the budget, or, whatever its length, as the step's only one.
        """
        lacking = sequence.num_tokens - sequence.num_computed_tokens
        if self._limits.chunked_prefill:
            return min(lacking, max(self._budget_for(sequence, draft), 0))
        return lacking if lacking <= draft.budget or not draft.has_prompt else 0

    def _budget_for(self, sequence: Sequence, draft: Draft) -> int:
        """Tokens that the step has left for a prompt."""
        if draft.patient >= draft.budget or sequence.account.is_owed(self._limits.token_budget):
            return draft.budget
        return draft.patient

    def _seat_urgent(self, now: float) -> None:
        """Seat waiting sequences that outrank running ones before those take the step's blocks, as many as the step has
        tokens for."""
        roster, budget = self._roster, self._limits.token_budget
        while budget > 0 and (urgent := roster.waiting.peek()) is not None:
            outranked = self._outranked(urgent)
            if not outranked:
                return
            if not self._admit(urgent, now):
                victims = self._victims(urgent, outranked)
                if not victims:
                    return
                for victim in victims:
                    roster.preempt(victim)
                admitted = roster.admit(urgent, now)
                assert admitted, "the victims' blocks and seats were counted"
            budget -= urgent.num_tokens - urgent.num_computed_tokens

    def _outranked(self, urgent: Sequence) -> list[Sequence]:
        """Running sequences that may have to make way: the lowest priority first; within the waiting one's own priority
        those of the accounts that hold most seats."""
        running, priority = self._roster.running.sequences, urgent.request.priority
        first_equal = bisect_left(running, -priority, key=lambda each: -each.request.priority)
        first_lower = bisect_right(running, -priority, key=lambda each: -each.request.priority)
        outranked = running[first_lower:][::-1]
        if self._roster.accounts.contended:
            rivals = [(each.account.rivals(urgent.account), each) for each in running[first_equal:first_lower][::-1]]
            holding_more = [(theirs.seats, each) for (theirs, ours), each in rivals if theirs.seats > ours.seats]
            outranked += [each for _, each in sorted(holding_more, key=lambda pair: -pair[0])]
        return outranked

    def _victims(self, urgent: Sequence, outranked: list[Sequence]) -> list[Sequence]:
        """The fewest of these, from the first on, that make room; none when all of them would not.

        Each that leaves gives back what it shares with nobody else, and the row that was kept for it to grow into.
        """
        running = self._roster.running
        blocks, eviction = self._roster.kv.shortage(urgent, headroom=len(running))
        needed = running.seats_for(urgent)
        missing = needed - running.free_seats
        given: Counter[Account] = Counter()  # seats, by accounts of the same priority
        victims: list[Sequence] = []
        for sequence in outranked:
            seats = running.seats_for(sequence)
            if sequence.request.priority == urgent.request.priority:
                theirs, ours = sequence.account.rivals(urgent.account)
                if theirs.seats - given[theirs] - seats < ours.seats + needed:
                    continue  # it would hold fewer than the newcomer
                given[theirs] += seats
            victims.append(sequence)
            eviction.add(sequence)
            missing -= seats
            if eviction.num_freed + len(victims) * self._roster.kv.row >= blocks and missing <= 0:
                return victims
        return []


def comes_before(waiting: Sequence, running: Sequence) -> bool:
    """Whether a waiting sequence's turn is before that of one that runs."""
    ours, theirs = waiting.request.priority, running.request.priority
    return ours > theirs or (ours == theirs and waiting.account.is_behind(running.account))
