"""What a process may use of its machine, as its control groups say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from inferd_kernels import host

MACHINE = "MemTotal:    2000000 kB\nMemAvailable:    1000000 kB\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose only group is the root's, without limits, and with eight processors."""
    (tmp_path / "meminfo").write_text(MACHINE)
    (tmp_path / "own").write_text("0::/\n")
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return tmp_path


def limit_memory(group: Path, limit: str, used: int, stat: str = "") -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\nslab 7\n{stat}")


def test_memory_is_what_the_machine_and_the_control_group_leave(machine: Path) -> None:
    assert host.available_memory() == 1_024_000_000
    limit_memory(machine, "max", 0)
    assert host.available_memory() == 1_024_000_000
    limit_memory(machine, "500000000", 200_000_000)
    assert (host.available_memory(), host.total_memory()) == (300_000_000, 500_000_000)
    limit_memory(machine, "100", 200)
    assert host.available_memory() == 0
    (machine / "memory.max").unlink()
    assert (host.available_memory(), host.total_memory()) == (1_024_000_000, 2_048_000_000)


def test_the_page_cache_of_a_container_is_free(machine: Path) -> None:
    """A checkpoint of 390 MB was read, a part of it twice."""
    limit_memory(machine, "500000000", 450_000_000, "inactive_file 300000000\nactive_file 90000000\nshmem 3\n")
    assert host.available_memory() == 440_000_000


def test_limits_of_the_groups_around_ours_hold(machine: Path) -> None:
    (machine / "own").write_text("1:name=systemd:/other\n0::/system.slice/inferd.service\n")
    limit_memory(machine / "system.slice/inferd.service", "max", 0)
    limit_memory(machine / "system.slice", "600000000", 100_000_000)
    assert host.available_memory() == 500_000_000
    (machine / "system.slice/cpu.max").write_text("400000 100000\n")
    (machine / "system.slice/inferd.service/cpu.max").write_text("max 100000\n")
    assert host.usable_processors() == 4


@pytest.mark.parametrize(
    ("quota", "count"), [("max 100000", 8), ("400000 100000", 4), ("150000 100000", 1), ("5000 100000", 1), ("", 8)]
)
def test_processors_are_cut_to_the_quota(machine: Path, quota: str, count: int) -> None:
    (machine / "cpu.max").write_text(quota)
    assert host.usable_processors() == count
