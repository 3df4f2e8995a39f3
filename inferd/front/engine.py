"""FrontEngine: admits requests, sends them to the core, and gives each what the core's steps made for it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial

from inferd.config import SchedulerConfig
from inferd.errors import EngineDead, InferdError
from inferd.front.admission import Admission
from inferd.front.core_port import CorePort
from inferd.front.gate import RETRY_S, Gate
from inferd.front.generation import Generation
from inferd.front.live import LiveRequests
from inferd.front.metrics import FrontMetrics
from inferd.front.output import OutputParams
from inferd.front.tracker import Tracker
from inferd.messages import PrefixCacheCleared, Ready, StateDump, StepOutputs, ToCore, Vocabulary
from inferd.request import Request
from inferd.text.tokenizer import Tokenizer


class FrontEngine:
    """The listener of an EngineClient. Everything runs on one event loop; nothing here blocks."""

    def __init__(self, scheduler: SchedulerConfig, metrics: FrontMetrics) -> None:
        self.admission = Admission(scheduler.max_num_seqs, scheduler.max_waiting)
        self.metrics = metrics
        self.ready: Ready | None = None  # of the core of the moment
        self.gate = Gate()
        self.live = LiveRequests()
        self.core = CorePort()
        self.keys = itertools.count(1)  # of requests, unique in this daemon's life
        self._vocabulary: Vocabulary | None = None

    def attach(self, send: Callable[[ToCore], None], phase: Callable[[], str]) -> None:
        """Connect to the client: how to reach the core, and how to say what a starting one is doing."""
        self.core.send = send
        self.gate.phase = phase

    def introduce(self, vocabulary: Vocabulary) -> None:
        """Tell this and every later core what constraints are matched against."""
        self._vocabulary = vocabulary
        if self.ready is not None and self.core.send is not None:
            self.core.send(vocabulary)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` called whenever `serving` may have changed."""
        self.gate.on_change = callback
        callback()

    @property
    def serving(self) -> bool:
        """Whether a request that comes now would be let in, queue permitting."""
        return self.gate.is_open

    def check_serving(self) -> None:
        """Raise the InferdError that a request meets now, if any: Draining, NotReady or EngineDead."""
        self.gate.check()

    def generate(self, request: Request, output: OutputParams, tokenizer: Tokenizer) -> Generation:
        """Admit a request, whose text `tokenizer` makes.

        Raises Draining, NotReady, EngineDead, DuplicateRequest, QueueFull.
        """
        self.check_serving()
        self.live.check_id(request.request_id)
        try:
            self.admission.admit(request)
        except InferdError:
            self.metrics.rejected_requests += 1
            raise
        assert self.core.send is not None
        self.metrics.on_admitted(len(request.prompt_token_ids))
        tracker = Tracker(request, self.core.send, self.metrics, partial(self.admission.retry_after, request))
        self.live.add(tracker)
        tracker.submit()
        return Generation(tracker, output, tokenizer, self.metrics, self._forget)

    # -- EngineListener

    @property
    def busy(self) -> bool:
        return self.live.busy

    def on_ready(self, ready: Ready) -> None:
        self.ready = ready
        self.metrics.on_ready(ready)
        if self._vocabulary is not None and self.core.send is not None:
            self.core.send(self._vocabulary)
        self.gate.set_ready(True)
        for tracker in self.live:
            tracker.on_ready(ready.max_context_tokens)

    def on_outputs(self, outputs: StepOutputs) -> None:
        now = time.monotonic()
        get = self.live.get
        for output in outputs.outputs:
            tracker = get(output.key)
            if tracker is not None:
                tracker.on_output(output, now)
        self.metrics.on_step(outputs.stats, now)
        if outputs.ranks:
            self.metrics.ranks = outputs.ranks

    def on_answer(self, answer: PrefixCacheCleared | StateDump) -> None:
        self.core.on_answer(answer)

    def on_lost(self, reason: str, may_resume: bool = True) -> None:
        self.ready = None
        self.metrics.on_lost()
        self.gate.set_ready(False)
        self.core.on_lost()
        if not may_resume:
            self.live.fail_all(EngineDead(f"the engine {reason} and starts again", retry_after_s=RETRY_S))
            return
        for tracker in self.live:
            tracker.on_lost()

    def on_dead(self, reason: str) -> None:
        self.ready = None
        self.live.fail_all(EngineDead(reason))
        self.gate.set_dead(reason)

    def _forget(self, tracker: Tracker) -> None:
        self.live.remove(tracker)
        self.admission.release(tracker.request)
