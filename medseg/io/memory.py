"""How much memory is free, so that a hostile or huge header is refused before anything is allocated."""

from __future__ import annotations

import errno
from pathlib import Path

import psutil

from medseg.errors import InputRefused

_CGROUPS = (  # limit, use, statistics, name of the reclaimable file cache in them; version 2, then version 1
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "_ALLOC_FAILED", "bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; outside of CUDA torch raises a plain RuntimeError."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can still use: of the machine, or of its control group if that has less."""
    free = int(psutil.virtual_memory().available)
    for limit, used, statistics, cache in _CGROUPS:
        try:
            rows = dict(line.split() for line in (cgroup / statistics).read_text().splitlines())
            room = int((cgroup / limit).read_text()) - int((cgroup / used).read_text()) + int(rows.get(cache, 0))
        except (OSError, ValueError):  # no such control group, or its limit is "max"
            continue
        free = min(free, max(room, 0))
    return free


def require_memory(needed: int) -> None:
    """Refuse a file whose voxels, ``needed`` bytes of them, do not fit.

    Raises:
        InputRefused: more is needed than is free.
    """
    free = free_memory()
    if needed > free:
        gib = 1024**3
        problem = (
            f"its header promises voxels that need {needed / gib:.1f} GiB of memory, {free / gib:.1f} GiB are free"
        )
        raise InputRefused(problem, fix="if the size is right, use a machine with more memory or crop the file")
