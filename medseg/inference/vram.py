"""What the networks need on their accelerator, told before anything runs, and the batch of windows that fits there."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from medseg.errors import ResourceError, UsageError
from medseg.inference.member import Member
from medseg.inference.memory import FLOAT

LARGEST_BATCH = 16
LIBRARIES = 512 * 2**20  # driver context and convolution workspaces: an allowance of ours, not measured


def device_need(members: Sequence[Member], window_batch: int) -> int:
    """Bytes on the accelerator: weights of all members, and a batch of windows of the one that needs most.

    Args:
        members: those that run on the CPU count nothing.
        window_batch: windows per network call.
    """
    placed = [member for member in members if member.profile.device.type != "cpu"]
    return _fixed(placed) + window_batch * _per_window(placed) if placed else 0


def fitting_window_batch(members: Sequence[Member], wanted: int | None, max_vram: int | None) -> int:
    """The largest batch of windows that fits.

    Args:
        members: the networks.
        wanted: at most so many; None: at most 16 within ``max_vram``, and 1 where that is not given.
        max_vram: bytes; None: whatever is wanted fits (if it does not, `medseg.inference.fallback` finds out).

    Raises:
        UsageError: ``wanted`` is below 1.
        ResourceError: not even one window fits.
    """
    if wanted is not None and wanted < 1:
        raise UsageError(f"window_batch is {wanted} (must be at least 1)")
    placed = [member for member in members if member.profile.device.type != "cpu"]
    if not placed or max_vram is None:
        return wanted or 1
    fits = (max_vram - _fixed(placed)) // _per_window(placed)
    if fits < 1:
        need = f"needs {device_need(placed, 1) / 2**30:.2f} GiB on {placed[0].profile.device} for a single window"
        raise ResourceError(f"{need} (max_vram is {max_vram / 2**30:.2f} GiB)", fix="raise max_vram or use device=cpu")
    return min(fits, wanted or LARGEST_BATCH)


def weight_bytes(member: Member) -> int:
    """Bytes of parameters and buffers as they are stored."""
    return sum(tensor.nbytes for tensor in (*member.network.parameters(), *member.network.buffers()))


def _fixed(placed: Sequence[Member]) -> int:
    # Autocast keeps a half-precision copy of the weights beside those in float32.
    return LIBRARIES + sum(weight_bytes(m) * (2 if m.profile.precision == "fp32" else 3) // 2 for m in placed)


def _per_window(placed: Sequence[Member]) -> int:
    return max(member.activation_bytes(1) + _in_and_out(member) for member in placed)


def _in_and_out(member: Member) -> int:
    """A window as it arrives and its logits as they leave, both float32."""
    return FLOAT * (len(member.plan.channel_names) + member.target.out_channels) * prod(member.plan.patch_size)
