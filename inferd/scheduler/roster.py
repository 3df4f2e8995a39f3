"""Roster: every live sequence and where it is. Each move between waiting, running and gone is one method, which keeps
blocks, seats and the executor's knowledge in step."""

from __future__ import annotations

from inferd.account import Accounts
from inferd.kv.manager import Growth, KVManager
from inferd.scheduler.queues import RunningList, WaitingQueue, running_rank
from inferd.scheduler.requests import announcement, forked_sequence
from inferd.sequence import Matcher, Sequence, SequenceStatus
from inferd.step import NewSequence


class Roster:
    """Writes Sequence.status. new and dropped are what the executor must hear with the next plan."""

    def __init__(self, kv: KVManager, seats: int) -> None:
        self.kv = kv
        self.accounts = Accounts()
        self.waiting = WaitingQueue()
        self.running = RunningList(seats)
        self.sequences: dict[int, Sequence] = {}
        self.constrained: dict[int, Matcher] = {}  # those of self.sequences that the executor has heard of
        self.num_preemptions = 0
        self._next_seq_id = 0
        self._new: dict[int, NewSequence] = {}
        self._dropped: list[int] = []

    def next_seq_id(self) -> int:
        self._next_seq_id += 1
        return self._next_seq_id

    def enqueue(self, sequence: Sequence) -> None:
        """Take in a new sequence; its account knows of it already."""
        self.sequences[sequence.seq_id] = sequence
        self.waiting.push(sequence)

    @property
    def room(self) -> int:
        """Blocks that a newcomer may take: see admit()."""
        return self.kv.pool.num_available - len(self.running) * self.kv.row

    def admit(self, sequence: Sequence, now: float) -> bool:
        """Waiting -> running, if there are seats and blocks for all its tokens.

        One row of blocks per running sequence is left over: without that room to grow in, the newcomer would be
        preempted again within a block's length of steps, its work for nothing.
        """
        if not self.running.has_seat(sequence):
            return False
        if not self.kv.admit(sequence, headroom=len(self.running)):
            return False
        self.waiting.remove(sequence)
        sequence.status = SequenceStatus.RUNNING
        if sequence.first_scheduled is None:
            sequence.first_scheduled = now
        sequence.account.choose()
        self.running.add(sequence)
        self._announce(sequence)
        return True

    def grow(self, sequence: Sequence, position: int) -> Growth | None:
        """Make the next position of a running sequence writable, preempting the worst ones while blocks are short.

        None, and nobody is preempted, when those behind it hold no block that would help: it keeps its blocks and waits
        for a later step. The best one always gets its block: alone it fits the pool.
        """
        growth = self.kv.grow(sequence, position)
        if growth is None:
            victims = self._victims_of_growth(sequence, position)
            if not victims:
                return None
            for victim in victims:
                self.preempt(victim)
            growth = self.kv.grow(sequence, position)
            assert growth is not None, "the victims' blocks were counted"
        if not sequence.announced:
            self._announce(sequence)
            return Growth([], growth.copies)
        return growth

    def extend(self, sequence: Sequence, num_tokens: int, step: int) -> list[int] | None:
        """Make the positions before num_tokens of a running sequence writable: see KVManager.extend. Where blocks are
        short, the worst ones behind it make way that are not in the plan of this step; None when that is not enough."""
        while (blocks := self.kv.extend(sequence, num_tokens)) is None:
            victim = self._last_outside(step)
            if victim is None or victim is sequence or running_rank(victim) < running_rank(sequence):
                return None
            self.preempt(victim)
        return blocks

    def preempt(self, sequence: Sequence) -> None:
        """Running -> waiting, without blocks: it will be computed again, as far as the prefix cache has lost it."""
        self._vacate(sequence)
        self._requeue(sequence)

    def fork(self, parent: Sequence, choice: int) -> Sequence:
        """A sequence for another choice of parent's computed prompt; seat_forks says where it goes."""
        child = forked_sequence(self.next_seq_id(), parent, choice)
        child.account.join()
        self.kv.fork(parent, child)
        self.sequences[child.seq_id] = child
        return child

    def seat_forks(self, parent: Sequence, children: list[Sequence]) -> None:
        """Let the forks run that have a seat; the others wait without blocks, like preempted ones.

        Call it once each has its first token, if it got one: what waits does not change.
        """
        self.running.remove(parent)
        parent.choices = parent.choices[:1]
        self.running.add(parent)
        for child in children:
            if self.running.free_seats:
                child.status = SequenceStatus.RUNNING
                self.running.add(child)
            else:
                self.kv.free(child)
                self._requeue(child)

    def narrow(self, sequence: Sequence, choice: int) -> None:
        """One choice less to fork into."""
        running = sequence.status is SequenceStatus.RUNNING
        if running:
            self.running.remove(sequence)
        sequence.choices = tuple(other for other in sequence.choices if other != choice)
        if running:
            self.running.add(sequence)

    def release(self, sequence: Sequence) -> None:
        """Gone, from wherever it is."""
        if sequence.status is SequenceStatus.RUNNING:
            self._vacate(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED
        del self.sequences[sequence.seq_id]
        sequence.account.leave()
        self.constrained.pop(sequence.seq_id, None)

    def take_news(self) -> tuple[list[NewSequence], list[int]]:
        """What changed for the executor since the last call: sequences new to it, and those to drop before."""
        news = list(self._new.values()), self._dropped
        self._new, self._dropped = {}, []
        return news

    def _victims_of_growth(self, sequence: Sequence, position: int) -> list[Sequence]:
        """The fewest of the worst sequences whose blocks let this one grow; none when not even all behind it do."""
        eviction = self.kv.eviction()
        victims: list[Sequence] = []
        for worst in reversed(self.running.sequences):
            if worst is sequence:
                break
            victims.append(worst)
            eviction.add(worst)
            if self.kv.can_grow(sequence, position, eviction):
                return victims
        return []

    def _last_outside(self, step: int) -> Sequence | None:
        """The worst running sequence that is not in the plan of this step."""
        running = reversed(self.running.sequences)
        return next((each for each in running if step not in (each.in_flight, each.ahead)), None)

    def _announce(self, sequence: Sequence) -> None:
        self._new[sequence.seq_id] = announcement(sequence)
        sequence.announced = True
        if sequence.matcher is not None:
            self.constrained[sequence.seq_id] = sequence.matcher

    def _vacate(self, sequence: Sequence) -> None:
        """Take seat and blocks. What a plan in flight still computes for it is not committed. A later plan may
        write the blocks again, because the executor runs plans in their order; so may the plan that is being made,
        but for the sources of its copies, which the KV manager keeps until it is made."""
        self.running.remove(sequence)
        self.kv.free(sequence)
        sequence.in_flight = sequence.ahead = sequence.plain_until = 0
        if self._new.pop(sequence.seq_id, None) is None and sequence.announced:
            self._dropped.append(sequence.seq_id)
        sequence.announced = False

    def _requeue(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.push(sequence)
