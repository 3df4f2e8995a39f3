"""How groups are formed and asked, with stand-ins for NCCL's; none of this has run on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inferd.checkpoint import open_checkpoint
from inferd.config import EngineConfig
from inferd.executor.group_start import _bring_up
from inferd.executor.seats import Seat
from inferd.executor.wire import (
    Allocate,
    Allocated,
    Connect,
    Hello,
    Loaded,
    Measure,
    Measured,
    Setup,
    local_environment,
)
from inferd.models.registry import check_checkpoint
from inferd.models.spec import ModelSpec
from inferd.parallel import context
from inferd.parallel.context import TensorGroup
from inferd.parallel.placement import Placement


class StandInGroup:
    """A group of the NCCL kind, which answers a synchronous collective with nothing."""

    def __init__(self, *args: Any) -> None:
        self.connected: list[torch.device] = []
        self.asked: list[bool] = []

    def eager_connect_single_device(self, device: torch.device) -> None:
        self.connected.append(device)

    def allreduce(self, tensors: list[torch.Tensor], options: Any) -> None:
        self.asked.append(options.asyncOp)
        tensors[0] += 1

    def _allgather_base(self, gathered: torch.Tensor, values: torch.Tensor, options: Any) -> None:
        self.asked.append(options.asyncOp)
        gathered.view(2, -1)[:] = values


def test_nccl_connects_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first collective, after loading, the store would have given up on a slow rank."""
    made: list[StandInGroup] = []

    class Nccl(StandInGroup):
        Options = SimpleNamespace

        def __init__(self, *args: Any) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(context.c10d, "ProcessGroupNCCL", Nccl, raising=False)
    monkeypatch.setattr(context.c10d, "PrefixStore", lambda name, store: store)
    device = torch.device("cuda", 1)
    context.connect(Placement(0, 2, 2), None, device, "127.0.0.1", 60.0)
    assert [group.connected for group in made] == [[device], [device]]


def test_collectives_run_on_the_stream_that_computes() -> None:
    group = StandInGroup()
    ranks = TensorGroup(0, 2, group)
    assert ranks.all_reduce(torch.zeros(3)).tolist() == [1, 1, 1]
    assert ranks.all_gather(torch.tensor([4.0, 5.0])).tolist() == [[4, 5], [4, 5]]
    assert group.asked == [False, False]


class StandInLinks:
    """Two ranks that answer at once, of which rank 1 takes longer to load: what the core says, and hears."""

    size = 2

    def __init__(self, answers: dict[type, Any]) -> None:
        self.events: list[str] = []
        self._answers = answers
        self._inbox: list[tuple[int, Any]] = []

    def send(self, rank: int, message: Any) -> None:
        self._take(rank, message)

    def broadcast(self, message: Any) -> None:
        self.events.append(type(message).__name__)
        for rank in range(2):
            self._take(rank, message)

    def receive(self) -> tuple[int, Any]:
        rank, message = self._inbox.pop(0)
        self.events.append(f"{type(message).__name__} {rank}")
        return rank, message

    def _take(self, rank: int, message: Any) -> None:
        self._inbox.append((rank, self._answers[type(message)]))


def test_no_rank_measures_before_the_last_has_loaded(
    engine_config: Callable[..., EngineConfig], tiny_model: Callable[[str], Path]
) -> None:
    """A step is run for it, whose collectives end ranks that wait for minutes; and memory is shared by those here."""
    path = tiny_model("llama")
    checkpoint = open_checkpoint(path)
    spec = check_checkpoint(checkpoint)
    assert isinstance(spec, ModelSpec)
    environment = local_environment(checkpoint.fingerprint)
    links = StandInLinks(
        {
            Setup: Hello(environment, "127.0.0.1", 1),
            Connect: Loaded("a", "float32", "none", 1, 1, {}, True),
            Measure: Measured(100, 10_000),
            Allocate: Allocated(),
        }
    )
    seats: Any = [Seat(None, rank, 2, "127.0.0.1") for rank in range(2)]  # type: ignore[arg-type]
    config = engine_config(path, 2)
    _bring_up(config, links, seats, environment, spec, lambda phase, fraction: None)  # type: ignore[arg-type]
    assert links.events == [
        *("Hello 0", "Hello 1", "Connect", "Loaded 0", "Loaded 1"),
        *("Measure", "Measured 0", "Measured 1", "Allocate", "Allocated 0", "Allocated 1"),
    ]
