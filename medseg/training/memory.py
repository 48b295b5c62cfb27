"""Memory of a training: refused before it begins where it cannot suffice, told in one line where it did not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from medseg.data.plan import Plan
from medseg.device import DeviceProfile
from medseg.errors import ResourceError
from medseg.io import free_memory
from medseg.io.memory import out_of_memory

SMALLER = "train with a smaller plan.patch_size or plan.batch_size (in another run_dir= if this run has begun)"
FLOAT, LOWER = 4, 2  # bytes of a number


def require_room(window_bytes: int, plan: Plan, profile: DeviceProfile) -> None:
    """Refuse a batch that cannot fit into main memory: of what a step needs, only a forward pass is counted.

    Args:
        window_bytes: of activations of one patch in float32.
        plan: its batch size is taken.
        profile: on another device than the CPU nothing is refused.

    Raises:
        ResourceError: it cannot fit.
    """
    needed = window_bytes * plan.batch_size * (FLOAT if profile.precision == "fp32" else LOWER) // FLOAT
    free = free_memory()
    if profile.device.type == "cpu" and needed > free:
        size = f"{plan.batch_size} patches of {' x '.join(map(str, plan.patch_size))}"
        problem = f"a step on {size} needs more than {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        raise ResourceError(problem, fix=f"{SMALLER}, or use a machine with more memory")


@contextmanager
def memory_suffices() -> Iterator[None]:
    """Turn what torch, NumPy and the system say of too little memory into one line. Raises ResourceError."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        fix = f"{SMALLER}, or free memory and go on with resume=true"
        raise ResourceError(f"out of memory ({first_line(error)})", fix=fix) from error


def first_line(error: BaseException) -> str:
    """What an error says, without the page that a worker process or torch adds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[-1] if lines and lines[0].startswith("Caught ") else next(iter(lines), "")
    return (told or type(error).__name__)[:200]
