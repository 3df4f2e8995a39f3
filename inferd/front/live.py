"""LiveRequests: the requests that were admitted and have not been given up, by key and by id."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from inferd.errors import DuplicateRequest, InferdError
from inferd.front.tracker import Tracker


class LiveRequests:
    def __init__(self) -> None:
        self._by_key: dict[int, Tracker] = {}
        self._by_id: dict[str, Tracker] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Tracker]:
        """Over a copy: what is done to them may end them."""
        return iter(list(self._by_key.values()))

    @property
    def busy(self) -> bool:
        """Whether the core owes output."""
        return any(tracker.owed for tracker in self._by_key.values())

    def check_id(self, request_id: str) -> None:
        """Raises DuplicateRequest."""
        if request_id in self._by_id:
            raise DuplicateRequest(f"a request with the id {request_id!r} is running", field="request_id")

    def add(self, tracker: Tracker) -> None:
        self._by_key[tracker.request.key] = self._by_id[tracker.request.request_id] = tracker

    def remove(self, tracker: Tracker) -> None:
        del self._by_key[tracker.request.key]
        del self._by_id[tracker.request.request_id]

    def get(self, key: int) -> Tracker | None:
        return self._by_key.get(key)

    def fail_all(self, error: InferdError) -> None:
        """End every generation with this error."""
        for tracker in self:
            tracker.fail(error)

    def finish(self, request_ids: Sequence[str] | None) -> list[str]:
        """End these (None: all) as aborted, with what they have. Returns the ids of those that had not ended."""
        wanted = self._by_id if request_ids is None else dict.fromkeys(request_ids)
        found = [self._by_id[request_id] for request_id in wanted if request_id in self._by_id]
        return [tracker.request.request_id for tracker in found if tracker.finish_aborted()]

    def describe(self, include_prompts: bool) -> list[dict[str, object]]:
        """For a state dump."""
        return [describe_tracker(tracker, include_prompts) for tracker in self]


def describe_tracker(tracker: Tracker, include_prompts: bool) -> dict[str, object]:
    request, now = tracker.request, time.monotonic()
    fields: dict[str, object] = {
        "key": request.key,
        "request_id": request.request_id,
        "choices": request.num_choices,
        "priority": request.priority,
        "age_s": round(now - request.arrival, 3),
        "deadline_in_s": None if request.deadline is None else round(request.deadline - now, 3),
        "prompt_tokens": len(request.prompt_token_ids),
        "received_tokens": [len(tokens) for tokens in tracker.received],
        "resumed_tokens": request.resumed_tokens,
        "max_tokens": request.stop.max_tokens,
        "owed": tracker.owed,
        "error": tracker.error.reason if tracker.error else None,
    }
    if include_prompts:
        fields |= {"prompt_token_ids": request.prompt_token_ids, "received_token_ids": tracker.received}
    return fields
