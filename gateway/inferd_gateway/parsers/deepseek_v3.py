"""DeepSeek: V3's and R1's `function<sep>name` with a fenced block of JSON; V3.1's `name<sep>{...}`."""

from __future__ import annotations

from inferd_gateway.parsers.incremental import IncrementalParser
from inferd_gateway.parsers.json_scan import NAME
from inferd_gateway.parsers.marks import Marks

ALL_OPEN, ALL_CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
OPEN, SEPARATOR, CLOSE = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
OPENING = Marks([ALL_OPEN, OPEN])
BEFORE_ARGUMENTS = Marks(["{", CLOSE, OPEN, ALL_CLOSE])
AFTER_ARGUMENTS = Marks([OPEN, ALL_CLOSE])


class DeepSeekV3Parser(IncrementalParser):
    def __init__(self) -> None:
        super().__init__()
        self._head: list[str] = []

    def _between(self) -> bool:
        before, mark = self._until(OPENING)
        self._say(before)
        if mark:
            self._step = self._name if mark == OPEN else self._after_call
        return bool(mark)

    def _name(self) -> bool:
        """What stands before the arguments. A call without any is dropped: its name may not be whole."""
        before, mark = self._until(BEFORE_ARGUMENTS)
        self._head.append(before)
        if not mark:
            return False
        label, _, rest = "".join(self._head).partition(SEPARATOR)
        self._head.clear()
        name = (rest.strip().partition("\n")[0] or label).strip()
        if mark == "{" and NAME.fullmatch(name):
            self._at -= 1
            self._start_arguments(name)
        else:
            self._at -= 0 if mark == "{" else len(mark)
            self._step = self._after_call
        return True

    def _after_call(self) -> bool:
        _, mark = self._until(AFTER_ARGUMENTS)
        if mark:
            self._step = self._name if mark == OPEN else self._between
        return bool(mark)

    def _end(self, rest: str) -> None:
        super()._end(rest if self._step == self._between else "")
