"""Device profile: precision, memory format, compilation and threads are one decision, shared by training and inference.

CUDA: bf16 (or fp16) autocast, channels-last. CPU: bf16 autocast where the processor has the instructions for it
(avx512_bf16 or AMX; elsewhere bf16 is emulated and slower), channels-last in 2D and 3D.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medseg.errors import UsageError, nearest

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
# What ONEDNN_MAX_CPU_ISA may name that has no bf16 arithmetic: oneDNN then imitates it, many times slower.
_ISA_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
PRECISION_VARIABLE = "MEDSEG_PRECISION"


@dataclass(frozen=True)
class DeviceProfile:
    """What the network runs on and how.

    Attributes:
        device: where weights and patches live.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (the autocast type; weights stay in float32).
        channels_last: whether weights and patches are laid out channels-last.
        compile: whether the network goes through ``torch.compile``.
        threads: intra-op threads of the CPU.
        reason: why, in a few words, for the log.
    """

    device: torch.device
    precision: str
    channels_last: bool
    compile: bool
    threads: int
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """Type that the network computes in."""
        return _DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that network calls run in."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.precision])

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device and into the memory format (in place; weights of 4 or 5 dimensions only)."""
        network.to(self.device)
        if self.channels_last:
            for parameter in network.parameters():
                if parameter.ndim in _MEMORY_FORMATS:
                    parameter.data = parameter.data.contiguous(memory_format=_MEMORY_FORMATS[parameter.ndim])
        return network

    def place_batch(self, batch: Tensor) -> Tensor:
        """Move a batch (B, C, *S) to the device and into the memory format."""
        batch = batch.to(self.device, non_blocking=True)
        return batch.contiguous(memory_format=_MEMORY_FORMATS[batch.ndim]) if self.channels_last else batch

    def run(self, network: nn.Module, batch: Tensor) -> Tensor:
        """Output of a placed network for a batch (B, C, *S): float32 on the CPU."""
        with self.autocast():
            return network(self.place_batch(batch)).float().cpu()

    @property
    def lightning_precision(self) -> str:
        """The name that ``pytorch_lightning.Trainer(precision=...)`` uses for it."""
        return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[self.precision]

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        compiled = ", compiled" if self.compile else ""
        return f"{self.device}, {self.precision}, {layout}{compiled}, {self.threads} threads ({self.reason})"


def choose_profile(
    device: str = "auto",
    precision: str = "auto",
    *,
    channels_last: bool = True,
    compile: bool = False,
    threads: int | None = None,
) -> DeviceProfile:
    """Choose the profile for this machine; whatever is not ``"auto"`` is taken as it is.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"``, ``"fp16"`` (fp16 needs a GPU). What ``"auto"`` means is set for
            a whole process by the environment variable ``MEDSEG_PRECISION``, e.g. for equal numbers on unequal nodes.
        channels_last: memory format of weights and patches.
        compile: use ``torch.compile``.
        threads: CPU threads; None keeps torch's number.

    Raises:
        UsageError: an unknown device or precision, or one that this machine does not have.
    """
    chosen = find_device(device)
    reason, source = "as asked", ""
    if precision == "auto" and os.environ.get(PRECISION_VARIABLE):
        precision, reason = os.environ[PRECISION_VARIABLE], f"as {PRECISION_VARIABLE} says"
        source = f"{PRECISION_VARIABLE}: "
    if precision != "auto" and precision not in _DTYPES:
        raise UsageError(f"{source}unknown precision '{precision}': {nearest(precision, ['auto', *_DTYPES])}")
    if precision == "fp16" and chosen.type == "cpu":
        raise UsageError(f"{source}precision=fp16 needs a GPU", fix="use precision=bf16 or fp32")
    if precision == "auto":
        precision, reason = _best_precision(chosen)
    if threads:
        torch.set_num_threads(threads)
    if chosen.type == "cpu":
        keep_freed_memory()
    return DeviceProfile(chosen, precision, channels_last, compile, torch.get_num_threads(), reason)


def find_device(name: str) -> torch.device:
    """The device of that name, ``"auto"`` included. Raises UsageError for an unknown one, or one that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device '{name}': {nearest(name, ['auto', 'cpu', 'cuda', 'mps'])}") from error
    have = device_count(device.type)
    if not have:
        raise UsageError(
            f"device={name}: this machine has no {device.type.upper()} device", fix="use device=cpu or device=auto"
        )
    if (device.index or 0) >= have:
        raise UsageError(f"device={name}: this machine has {have} {device.type.upper()} device(s), numbered from 0")
    return device


def device_count(kind: str) -> int:
    """Devices of a kind that this machine has: ``"cpu"`` (one), ``"cuda"``, ``"mps"``; 0 of others."""
    if kind == "cuda":
        return torch.cuda.device_count()
    return int(kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available()))


def _best_precision(device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported()
        return ("bf16", "the GPU has bf16") if bf16 else ("fp16", "the GPU has no bf16")
    if device.type != "cpu":
        return "fp32", f"{device.type} runs in fp32"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit in _ISA_WITHOUT_BF16:
        return "fp32", f"oneDNN is held to {limit}, which has no bf16"
    have = [name for name in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(name)]
    return ("bf16", f"the CPU has {have[0]}") if have else ("fp32", "the CPU has no bf16 instructions")


@contextmanager
def without_memory() -> Iterator[None]:
    """Tensors that are made within have shapes and types alone: networks of any size are built in no memory.

    This is torch's meta device, on which random numbers are asked of a reference implementation in Python whose import
    takes a second (torch._dynamo, sympy); as there is nothing to fill, nothing is asked.
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Leaves tensors without memory as they are where random numbers would fill them."""

    FILLS = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.random_, Tensor.exponential_})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in self.FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def keep_freed_memory() -> None:
    """Let glibc keep freed tensors instead of handing their pages back to the kernel after every step.

    Large tensors are otherwise mapped and unmapped on each use, and a training step on a CPU spends about a fifth
    of its time on page faults. Does nothing on other C libraries; the peak of memory is unchanged.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX: serve large blocks from the heap ...
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: ... and do not give the heap back
