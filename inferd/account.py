"""Accounts: who is served how much. A tree of two levels, keys and the callers that a key's holder names: first keys
share with each other, then the callers of a key what it got. So nobody gains by inventing callers.

The counters follow Sheng et al., "Fairness in serving large language models" (2024): each token that is computed counts
for its account, and whoever comes after a pause starts where the others are. It may start a BURST behind them, so that
a long prompt of one who asks now and then is not interleaved with what a flood brings all the time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from inferd.request import Tenant

BURST = 4096.0  # tokens
MAX_REMEMBERED = 1024  # accounts of a parent without a live sequence whose debt is kept


class Account:
    """One key, or one caller of a key. It exists while it has a live sequence."""

    __slots__ = ("_debts", "_floor", "_live", "children", "name", "parent", "seats", "served")

    def __init__(self, name: str, parent: Account | None, served: float) -> None:
        self.name = name
        self.parent = parent
        self.served = served  # tokens computed, and what it was given when it came
        self.seats = 0  # of its running sequences
        self.children: dict[str, Account] = {}
        self._live = 0
        self._floor = 0.0  # `served` of the child that was chosen last
        self._debts: OrderedDict[str, float] = OrderedDict()  # `served` of children that left

    @property
    def path(self) -> list[Account]:
        """The accounts from the key to this one."""
        return list(self.lineage())[::-1]

    def lineage(self) -> Iterator[Account]:
        """This account and those above it, but for the root."""
        account = self
        while account.parent is not None:
            yield account
            account = account.parent

    def enter(self, name: str) -> Account:
        """The child of that name, with one live sequence more."""
        child = self.children.get(name)
        if child is None:
            child = self.children[name] = Account(name, self, self._start(name))
        child._live += 1
        return child

    def _start(self, name: str) -> float:
        """Where the counter of a child begins: where it ended, but not far behind the others."""
        earliest = self._floor - BURST if self.children else self._floor
        return max(self._debts.pop(name, earliest), earliest)

    def join(self) -> None:
        """One live sequence more."""
        for account in self.lineage():
            account._live += 1

    def leave(self) -> None:
        """One live sequence less, here and above."""
        for account in self.lineage():
            parent = account.parent
            assert parent is not None
            account._live -= 1
            if account._live == 0:
                del parent.children[account.name]
                parent._remember(account)

    def charge(self, num_tokens: int) -> None:
        """For the account of a caller."""
        assert self.parent is not None
        self.served += num_tokens
        self.parent.served += num_tokens

    def choose(self) -> None:
        """A waiting sequence of this account begins to run."""
        for account in self.lineage():
            assert account.parent is not None
            account.parent._floor = max(account.parent._floor, account.served)

    def hold(self, num_seats: int) -> None:
        """num_seats more, or fewer when negative."""
        for account in self.lineage():
            account.seats += num_seats

    def is_behind(self, other: Account) -> bool:
        """Whether it has been served less than another."""
        ours, theirs = self.rivals(other)
        return ours.served < theirs.served

    def is_owed(self, num_tokens: int) -> bool:
        """Whether it could be served so many tokens before its turn was over, wherever it shares with others."""
        shared = [each for each in self.lineage() if each.parent is not None and len(each.parent.children) > 1]
        return bool(shared) and all(
            each.parent is not None and each.served + num_tokens <= each.parent._floor for each in shared
        )

    def rivals(self, other: Account) -> tuple[Account, Account]:
        """The accounts of both between which their sequences compete: the keys, or two callers of one key."""
        if self.parent is not other.parent:
            assert self.parent is not None
            assert other.parent is not None
            return self.parent, other.parent
        return self, other

    def _remember(self, child: Account) -> None:
        if not self.children:
            self._debts.clear()  # nobody is left who could have had less
            self._floor = max(self._floor, child.served)
        elif child.served > self._floor - BURST:
            self._debts[child.name] = child.served
            if len(self._debts) > MAX_REMEMBERED:
                self._debts.popitem(last=False)


class Accounts:
    """The root of the tree."""

    def __init__(self) -> None:
        self._root = Account("", None, 0.0)

    def enter(self, tenant: Tenant) -> Account:
        """The account of a tenant, with one live sequence more; leave() takes it back."""
        return self._root.enter(tenant.key).enter(tenant.caller)

    @property
    def num_live(self) -> int:
        """Keys with live sequences."""
        return len(self._root.children)

    @property
    def contended(self) -> bool:
        """Whether more than one account has live sequences."""
        keys = self._root.children
        return len(keys) > 1 or any(len(key.children) > 1 for key in keys.values())
