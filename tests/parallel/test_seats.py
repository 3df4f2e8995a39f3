"""Where ranks run when nobody says so: by how many there are, by the accelerators here, and by whether Ray is."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
import torch
from inferd_kernels import host

from inferd.config import DeviceConfig, EngineConfig, ModelConfig, ParallelConfig
from inferd.errors import StartupError
from inferd.executor import seats
from inferd.executor.build import rank_device, resolve_device
from inferd.executor.seats import choose_backend, count_accelerators


def config(tensor: int, device: str = "auto", **parallel: object) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(source="m", path="m"),
        device=msgspec.convert({"device": device}, DeviceConfig),
        parallel=msgspec.convert({"tensor_parallel_size": tensor, **parallel}, ParallelConfig),
    )


@pytest.fixture(params=[True, False], ids=["ray", "no ray"])
def ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(seats, "ray_runs", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize(
    ("settings", "devices", "expected"),
    [
        (config(1), 0, "local"),
        (config(4), 0, "multiprocess"),
        (config(4), 4, "multiprocess"),
        (config(4, "cpu"), 2, "multiprocess"),
        (config(4, nnodes=2), 2, "multiprocess"),
        (config(2, backend="ray"), 4, "ray"),
        (config(1, backend="multiprocess"), 0, "multiprocess"),
    ],
)
def test_ranks_run_here_where_they_can(
    settings: EngineConfig, devices: int, expected: str, ray: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "count_accelerators", lambda: devices)
    assert choose_backend(settings) == expected


def test_more_ranks_than_accelerators_go_to_ray(ray: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "count_accelerators", lambda: 2)
    if ray:
        assert choose_backend(config(4)) == "ray"
    else:
        with pytest.raises(StartupError, match="4 workers need 4 accelerators, this machine has 2: start `inferd cl"):
            choose_backend(config(4))


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, 4), ("", 0), ("-1", 0), ("2,3", 2), ("0,-1,1", 1), ("0,1,2,3,4,5", 4)]
)
def test_accelerators_that_are_hidden_do_not_count(
    visible: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats.glob, "glob", lambda pattern: [f"/dev/nvidia{number}" for number in range(4)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_accelerators() == expected


@pytest.mark.parametrize(("threads", "ranks", "share"), [(8, 2, 4), (8, 3, 2), (1, 4, 1), (None, 10_000, 1)])
def test_ranks_share_the_threads_of_their_machine(threads: int | None, ranks: int, share: int) -> None:
    assert rank_device(DeviceConfig(threads=threads), ranks).threads == share


def test_each_rank_has_an_accelerator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert resolve_device(DeviceConfig(), 1, 2) == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    with pytest.raises(StartupError, match="3 ranks on a machine with 2 CUDA devices: one device each is needed"):
        resolve_device(DeviceConfig(), 2, 3)


def test_threads_are_those_that_the_control_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of four processors on a machine with sixty-four."""
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert rank_device(DeviceConfig(), 2).threads == 2
    before = torch.get_num_threads()
    try:
        assert resolve_device(DeviceConfig(device="cpu")) == torch.device("cpu")
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
