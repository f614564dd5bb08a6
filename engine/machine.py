"""How much memory and how many cores the engine may count on: the machine's, or the container's limits.

Read once at start. Everything that uses the figures is pure (`engine.postgres_conf`) and takes a `Machine`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes a number near 2^63 for "no limit"
_FALLBACK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Machine:
    """What postgresql.conf is tuned to."""

    memory_bytes: int
    cores: int
    shm_bytes: int  # size of /dev/shm; 0 where there is none

    @classmethod
    def probe(cls) -> Self:
        return cls(memory_bytes=_memory_bytes(), cores=_cores(), shm_bytes=_shm_bytes())


def _memory_bytes() -> int:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        total = _FALLBACK_BYTES
    limits = [
        _read_number(Path("/sys/fs/cgroup/memory.max")),
        _read_number(Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")),
    ]
    return min([total, *(limit for limit in limits if limit is not None and 0 < limit < _UNLIMITED_BYTES)])


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def _shm_bytes() -> int:
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return stat.f_blocks * stat.f_frsize


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
