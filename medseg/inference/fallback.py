"""What happens when a device runs out of memory: fewer windows at a time, then the CPU, then an error that says so."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import torch
from torch import Tensor, nn

from medseg.device import choose_profile
from medseg.errors import BadVoxels, ResourceError
from medseg.inference.member import Member
from medseg.inference.memory import free_room
from medseg.inference.vram import weight_bytes
from medseg.io.memory import out_of_memory

logger = logging.getLogger(__name__)


class WindowRunner:
    """Runs networks on batches of windows, retreating where memory does not suffice; the logits stay the same.

    The batch is halved down to one window; then the network goes on on the CPU, in float32 or what the CPU has for
    lower precision. A runner serves one case: what one lacked says nothing about the next. The networks that it is
    given are left where they are, as other threads may use them.

    Args:
        window_batch: windows per network call.
        max_ram: bytes that the process may hold; None: what is free.

    Attributes:
        window_batch: windows per network call by now.
        steps: what was given up, in order, e.g. ``"window batch 2 -> 1"``, ``"network on the CPU"``.
    """

    def __init__(self, window_batch: int, max_ram: int | None) -> None:
        self.window_batch, self.max_ram = window_batch, max_ram
        self.steps: list[str] = []
        self._on_cpu: dict[int, Member] = {}
        self._moved: dict[int, Tensor] = {}  # passes and members may share weights: each goes over once

    def logits(self, member: Member, batch: Tensor, *, mirror: bool = False) -> Tensor:
        """`Member.logits` of a batch (B, C, *patch_size), in as many calls as it takes.

        Raises:
            BadVoxels: the network answers with numbers that are not finite: weights, intensities or precision overflow.
            ResourceError: a single window does not fit on the CPU either.
        """
        while True:
            runs = self._on_cpu.get(id(member), member)
            try:
                parts = [runs.logits(part, mirror=mirror) for part in batch.split(self.window_batch)]
                return _finite(parts[0] if len(parts) == 1 else torch.cat(parts), runs)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            # Beyond the except block nothing of the failed call is held any more.
            self._retreat(member, runs, len(batch))

    def _retreat(self, member: Member, runs: Member, count: int) -> None:
        device, batch = runs.profile.device, min(self.window_batch, count)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if batch > 1:
            self.window_batch = batch // 2
            self._note(f"window batch {batch} -> {self.window_batch}", device)
        elif device.type != "cpu" and self._fits_on_cpu(member):
            self._on_cpu[id(member)] = self._move(member)
            self._note("network on the CPU", device)
        else:
            size = " x ".join(map(str, member.plan.patch_size))
            fix = "raise max_ram, use a machine with more memory, or train with a smaller patch_size"
            raise ResourceError(f"out of memory with one window of {size} voxels on the CPU", fix=fix)

    def _note(self, step: str, device: torch.device) -> None:
        self.steps.append(step)
        logger.warning("%s is out of memory: %s", device, step)

    def _fits_on_cpu(self, member: Member) -> bool:
        return weight_bytes(member) + member.activation_bytes(1) <= free_room(self.max_ram)

    def _move(self, member: Member) -> Member:
        for tensor in (*member.network.parameters(), *member.network.buffers()):
            if id(tensor) not in self._moved:
                there = tensor.detach().cpu()
                self._moved[id(tensor)] = nn.Parameter(there, False) if isinstance(tensor, nn.Parameter) else there
        profile = choose_profile("cpu", "fp32" if member.profile.precision == "fp32" else "auto")
        return replace(member, network=copy.deepcopy(member.network, dict(self._moved)), profile=profile)  # type: ignore[arg-type]


def _finite(logits: Tensor, member: Member) -> Tensor:
    """The logits, of which not one may be NaN or infinite: they would be decoded as if they meant something."""
    if not all(bound.isfinite() for bound in logits.aminmax()):
        fix = "check the image's intensities and the model; with fp16 or bf16, try precision=fp32"
        raise BadVoxels(f"the network's output is not finite (it ran in {member.profile.precision})", fix=fix)
    return logits
