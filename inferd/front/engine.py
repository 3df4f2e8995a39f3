"""FrontEngine: admits requests, sends them to the core, and gives each what the core's steps made for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from inferd.config import SchedulerConfig
from inferd.errors import Draining, DuplicateRequest, EngineDead, InferdError, NotReady
from inferd.front.admission import Admission
from inferd.front.generation import Generation
from inferd.front.metrics import FrontMetrics
from inferd.front.output import OutputParams
from inferd.front.tracker import Tracker
from inferd.messages import Ready, StepOutputs, ToCore
from inferd.request import Request
from inferd.text.tokenizer import Tokenizer

RESTART_RETRY_S = 1.0  # when to come back while the core starts


class FrontEngine:
    """The listener of an EngineClient. Everything runs on one event loop; nothing here blocks."""

    def __init__(self, scheduler: SchedulerConfig, metrics: FrontMetrics) -> None:
        self.admission = Admission(scheduler.max_num_seqs + scheduler.max_waiting)
        self.metrics = metrics
        self.ready: Ready | None = None  # of the core of the moment
        self._keys = itertools.count(1)
        self._trackers: dict[int, Tracker] = {}
        self._request_ids: set[str] = set()
        self._send: Callable[[ToCore], None] | None = None
        self._draining = False
        self._dead: str | None = None
        self._was_ready = False
        self._phase: Callable[[], str] = lambda: ""
        self._on_change: Callable[[], None] = lambda: None

    def attach(self, send: Callable[[ToCore], None], phase: Callable[[], str]) -> None:
        """Connect to the client: how to reach the core, and how to say what a starting one is doing."""
        self._send = send
        self._phase = phase

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` called whenever `serving` may have changed."""
        self._on_change = callback
        callback()

    @property
    def serving(self) -> bool:
        """Whether a request that comes now would be let in, queue permitting."""
        return self.ready is not None and self._dead is None and not self._draining

    def next_key(self) -> int:
        """A key for a new request, unique in this daemon's life."""
        return next(self._keys)

    def check_serving(self) -> None:
        """Raise the InferdError that a request meets now, if any: Draining, NotReady or EngineDead."""
        if self._draining:
            raise Draining("the server is shutting down", retry_after_s=RESTART_RETRY_S)
        if self._dead is not None:
            raise EngineDead(self._dead)
        if self.ready is None:
            state = "the engine died and restarts" if self._was_ready else "the model is loading"
            raise NotReady(f"{state}: {self._phase()}", retry_after_s=RESTART_RETRY_S)

    def generate(self, request: Request, output: OutputParams, tokenizer: Tokenizer) -> Generation:
        """Admit a request, whose text `tokenizer` makes.

        Raises Draining, NotReady, EngineDead, DuplicateRequest, QueueFull.
        """
        self.check_serving()
        if request.request_id in self._request_ids:
            raise DuplicateRequest(f"a request with the id {request.request_id!r} is running", field="request_id")
        try:
            self.admission.admit(request.num_choices)
        except InferdError:
            self.metrics.rejected_requests += 1
            raise
        assert self._send is not None
        self._request_ids.add(request.request_id)
        self.metrics.on_admitted(len(request.prompt_token_ids))
        tracker = Tracker(request, self._send, self.metrics, self.admission.retry_after)
        self._trackers[request.key] = tracker
        tracker.submit()
        return Generation(tracker, output, tokenizer, self.metrics, self._forget)

    def drain(self) -> None:
        """Admit nothing more."""
        self._draining = True
        self._on_change()

    def fail_all(self, error: InferdError) -> None:
        """End every generation with this error."""
        for tracker in list(self._trackers.values()):
            tracker.fail(error)

    # -- EngineListener

    @property
    def busy(self) -> bool:
        return any(tracker.owed for tracker in self._trackers.values())

    def on_ready(self, ready: Ready) -> None:
        self.ready, self._was_ready = ready, True
        self.metrics.on_ready(ready)
        self._on_change()
        for tracker in list(self._trackers.values()):
            tracker.on_ready(ready.max_context_tokens)

    def on_outputs(self, outputs: StepOutputs) -> None:
        now = time.monotonic()
        trackers = self._trackers
        for output in outputs.outputs:
            tracker = trackers.get(output.key)
            if tracker is not None:
                tracker.on_output(output, now)
        self.metrics.on_step(outputs.stats)
        if outputs.ranks:
            self.metrics.ranks = outputs.ranks

    def on_lost(self, reason: str, may_resume: bool = True) -> None:
        self.ready = None
        self.metrics.on_lost()
        self._on_change()
        if not may_resume:
            self.fail_all(EngineDead(f"the engine {reason} and starts again", retry_after_s=RESTART_RETRY_S))
            return
        for tracker in list(self._trackers.values()):
            tracker.on_lost()

    def on_dead(self, reason: str) -> None:
        self.ready, self._dead = None, reason
        self.fail_all(EngineDead(reason))
        self._on_change()

    def _forget(self, tracker: Tracker) -> None:
        del self._trackers[tracker.request.key]
        self._request_ids.discard(tracker.request.request_id)
        self.admission.release(tracker.request.num_choices)
