"""Draft: the plan that the planner makes."""

from __future__ import annotations

from inferd.account import Account
from inferd.sequence import Sequence
from inferd.step import BlockCopy, PlanItem

NO_BLOCKS: list[int] = []  # shared by all items that need none; plans are frozen


class Draft:
    """A plan in the making. Items of one token come first in the plan: attention kernels want them together.

    Whoever appends an item for a sequence writes the step into its in_flight (ahead, if it is in another plan).
    """

    def __init__(self, step: int, budget: int, room: int, patient: int) -> None:
        self.step = step
        self.budget = budget  # tokens left
        self.room = room  # items left
        self.patient = patient  # those of the tokens left that prompts get which can wait
        self.single: list[PlanItem] = []
        self.longer: list[PlanItem] = []
        self.copies: list[BlockCopy] = []
        self.has_prompt = False
        self.completed: Account | None = None  # the first whose prompt the step completes
        self.has_yielded = False  # a prompt stayed out of the step for its sake

    def add(self, sequence: Sequence, num_tokens: int, blocks: list[int]) -> None:
        """The next num_tokens of a sequence whose slots are there since it got these blocks."""
        start = sequence.num_computed_tokens
        end = start + num_tokens
        choices = sequence.choices if end == sequence.num_tokens else ()
        item = PlanItem(sequence.seq_id, start, sequence.token_ids[start:end], blocks, choices)
        (self.single if num_tokens == 1 else self.longer).append(item)
        sequence.in_flight = self.step
        self.budget -= num_tokens
        self.patient -= num_tokens
        self.room -= 1
        self.has_prompt = True
        if end == sequence.num_tokens and self.completed is None:
            self.completed = sequence.account
