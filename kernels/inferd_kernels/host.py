"""What this process may use of its machine: the processors and the memory that its control groups leave it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
FILE_PAGES = ("active_file", "inactive_file")


def usable_processors() -> int:
    """Processors of this process's affinity mask, cut to the CPU quota of its control groups."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups():
        try:
            quota, period = (group / "cpu.max").read_text().split()
            count = count if quota == "max" else min(count, int(quota) // int(period))
        except (OSError, ValueError):
            continue
    return max(count, 1)


def available_memory() -> int:
    """Bytes this process can still take: MemAvailable, or what a control group leaves when that is less.

    A group counts the page cache of the files that were read in it, a checkpoint's for instance. The kernel drops
    those pages when memory is needed, those that were read twice and are therefore active included: they are free.
    """
    left = [_memory_left(group) for group in _control_groups()]
    return max(min([_meminfo("MemAvailable"), *(each for each in left if each is not None)]), 0)


def total_memory() -> int:
    """Bytes this process could take if it were alone."""
    limits = [_memory_limit(group) for group in _control_groups()]
    return min([_meminfo("MemTotal"), *(limit for limit in limits if limit is not None)])


def _control_groups() -> Iterator[Path]:
    """The folders of this process's group and of those around it; a limit of any of them holds."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    relative = Path(own)
    for part in (relative, *relative.parents) if relative.parts else (relative,):
        yield CGROUP / part


def _memory_limit(group: Path) -> int | None:
    """None: it has none."""
    try:
        return int((group / "memory.max").read_text())
    except (OSError, ValueError):  # ValueError: "max"
        return None


def _memory_left(group: Path) -> int | None:
    limit = _memory_limit(group)
    if limit is None:
        return None
    try:
        used = int((group / "memory.current").read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return limit - max(used - sum(int(counts.get(name, 0)) for name in FILE_PAGES), 0)


def _meminfo(name: str) -> int:
    fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    return int(fields[name].split()[0]) * 1024
