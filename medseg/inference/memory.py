"""How much memory a case will need, told from its header before anything is allocated, and the plan that fits."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medseg.errors import InputRefused, ResourceError, UsageError
from medseg.io import Geometry
from medseg.io.memory import free_memory

if TYPE_CHECKING:
    from medseg.inference.member import Member

FLOAT = 4
BLOCK_COPIES = 4  # planes that wait, resized planes, their blend, what is decoded
MORE_COPIES = 6  # of every further stream of planes: they wait for one another, and fragment the heap; measured
LIBRARIES = 128 * 2**20  # code loaded on first use, and what convolutions hold beside their tensors; measured


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a case needs at its peak, beside what the process holds already.

    Attributes:
        image: the file's voxels, and the prepared ones of every member.
        logits: sums over windows, one window deep.
        blocks: planes on their way from logits to labels.
        network: activations of a batch of windows.
        output: labels, and probabilities if asked for.
    """

    image: int
    logits: int
    blocks: int
    network: int
    output: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.image + self.logits + self.blocks + self.network + self.output

    def __str__(self) -> str:
        parts = (f"{name} {getattr(self, name) / 2**30:.2f}" for name in self.__dataclass_fields__)
        return f"{self.total / 2**30:.2f} GiB ({', '.join(parts)})"


def activation_bytes(network: nn.Module, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """Most bytes of tensors that are alive at once while a network looks at a batch, its weights left out.

    The network runs on torch's meta device: every operation is gone through, no number is computed.

    Args:
        network: left unchanged.
        shape: (B, C, *S) of the batch.
        dtype: of the activations.
    """
    twin = copy.deepcopy(network).to("meta", dtype).eval()
    live = _LiveBytes()
    with torch.no_grad(), live:
        twin(torch.empty(tuple(shape), dtype=dtype, device="meta"))
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operations bring into being until the last tensor on them is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor, known=tensor.untyped_storage()._cdata in given)
        return result

    def _follow(self, tensor: Tensor, known: bool) -> None:
        key, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
        if key not in self.users:
            if known:  # a view of a weight or of the batch
                return
            self.users[key], self.now = 0, self.now + size
            self.peak = max(self.peak, self.now)
        self.users[key] += 1
        weakref.finalize(tensor, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.now -= size


def slab_bytes(channels: int, shape: Sequence[int], patch_size: Sequence[int], axis: int) -> int:
    """Logits and weights of one window's depth of planes of a (padded) grid."""
    padded = [max(n, p) for n, p in zip(shape, patch_size, strict=True)]
    rest = prod(n for a, n in enumerate(padded) if a != axis)
    return FLOAT * (channels + 1) * patch_size[axis] * rest


def predict_need(
    members: Sequence[Member],
    geometry: Geometry,
    *,
    window_batch: int,
    block_bytes: int,
    probabilities: bool,
    passes: int = 1,
    scales: Sequence[float] = (1.0,),
    skip_empty: bool = False,
    mask: bool = False,
) -> MemoryNeed:
    """What a case needs, from its header. A crop to the non-zero voxels is not known yet and taken as none.

    Args:
        members: the networks.
        geometry: of the file.
        window_batch: windows per network call.
        block_bytes: planes that are restored and decoded at a time have about this size, and at least one plane.
        probabilities: whether all of them are to be returned.
        passes: of every member; each holds logits of its own.
        scales: of the test-time augmentation; so does each of them, beside an image of its size.
        skip_empty: whether every stream keeps the logits of an empty window.
        mask: whether there is one.

    Raises:
        InputRefused: a 2D image for a 3D model or the other way round.
    """
    if len(geometry.shape) != members[0].plan.spatial_dims:
        raise InputRefused(f"the image is {len(geometry.shape)}D (the model is {members[0].plan.spatial_dims}D)")
    grid, target = geometry.canonical(), members[0].target
    channels, shares = target.out_channels, FLOAT * target.probability_channels
    prepared = [member.plan.grid(grid.shape, grid.spacing) for member in members]
    image = FLOAT * len(members[0].plan.channel_names)
    axis = longest_axis(prepared[0], members[0].plan.patch_size)
    planes = [shares * prod(s) // s[axis] for s in (grid.shape, *prepared)]
    block = min(max(block_bytes, *planes), shares * prod(grid.shape))
    scaled = [[[max(1, round(n * scale)) for n in s] for scale in scales] for s in prepared]
    resampled = sum(prod(s) for grids, own in zip(scaled, prepared, strict=True) for s in grids if s != list(own))
    windows = [FLOAT * channels * prod(member.plan.patch_size) * len(scales) for member in members]
    slabs = [
        slab_bytes(channels, s, member.plan.patch_size, axis)
        for member, grids in zip(members, scaled, strict=True)
        for s in grids
    ]
    voxels = prod(grid.shape) + sum(map(prod, prepared)) + resampled
    streams = len(members) * passes * (len(scales) if list(scales) == [1.0] else len(scales) + 1)
    return MemoryNeed(
        image=image * (2 * prod(grid.shape) + sum(map(prod, prepared)) + resampled) + mask * 2 * voxels,
        logits=passes * (sum(slabs) + skip_empty * sum(windows)),
        blocks=(BLOCK_COPIES + MORE_COPIES * (streams - 1)) * block,
        network=LIBRARIES + max(member.host_bytes(window_batch) for member in members),
        output=prod(grid.shape) * (2 + 2 * shares * probabilities),
    )


def longest_axis(shape: Sequence[int], patch_size: Sequence[int]) -> int:
    """The axis along which one window is the smallest share of the image; the last of equal ones."""
    ratios = [max(n, p) / p for n, p in zip(shape, patch_size, strict=True)]
    return max(range(len(ratios)), key=lambda axis: (ratios[axis], axis))


def free_room(budget: int | None) -> int:
    """Bytes that can still be taken: up to a budget of the whole process, or up to what the machine has free."""
    return free_memory() if budget is None else budget - psutil.Process().memory_info().rss


def must_spill(need: MemoryNeed, budget: int | None) -> bool:
    """Whether the logits have to lie in a file for a case to fit.

    Args:
        need: of the case.
        budget: bytes; None: what the machine, or its control group, has free.

    Raises:
        ResourceError: it does not fit even so.
    """
    room = free_room(budget)
    if need.total <= room:
        return False
    if need.total - need.logits <= room:
        return True
    problem = f"needs {need} beyond what is in use, and {max(room, 0) / 2**30:.2f} GiB are free"
    raise ResourceError(problem, fix="raise max_ram, use a machine with more memory, or crop the image")


class PeakMeter:
    """The most memory that the process held since the meter was made, above what it held then; Linux only.

    Args:
        start: bytes to measure from instead.
    """

    def __init__(self, start: int | None = None) -> None:
        self.start = psutil.Process().memory_info().rss if start is None else start
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is held now

    def peak(self) -> int | None:
        """Bytes; None where the system does not tell."""
        try:
            rows = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return None
        mark = next((int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM:")), None)
        return None if mark is None else max(0, mark - self.start)


def as_bytes(size: int | float | str | None) -> int | None:
    """``"8G"``, ``"500M"``, or a number of bytes.

    Raises:
        UsageError: something else.
    """
    if size is None or isinstance(size, int):
        return size
    text = str(size).strip().upper().removesuffix("B").removesuffix("I")
    factor = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(text[-1:], 1)
    try:
        return int(float(text.rstrip("KMGT")) * factor)
    except ValueError:
        raise UsageError(f"a size of memory is '{size}' (expected e.g. 8G or 500M)") from None
