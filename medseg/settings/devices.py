"""Settings of what computes. torch is asked only where a device is named that this machine may lack."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from medseg.errors import UsageError
from medseg.settings.base import MOST_PROCESSES, Said

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?", re.ASCII)


def _check_device(name: str) -> str:
    if not _DEVICE.fullmatch(name):
        raise ValueError
    if name not in ("auto", "cpu"):
        from medseg.device import find_device

        find_device(name)
    return name


Device = Annotated[str, AfterValidator(_check_device), Said("auto, cpu, cuda, cuda:1 or mps")]


def check_precision(prefix: str, device: str, precision: str) -> None:
    """Refuse half precision where the processor computes. Raises UsageError."""
    if precision == "fp16" and device in ("auto", "cpu"):
        from medseg.device import find_device

        if find_device(device).type == "cpu":
            raise UsageError(f"{prefix}precision=fp16 needs a GPU", fix=f"use {prefix}precision=bf16 or fp32")


def check_devices(device: str, count: int, strategy: str) -> None:
    """Refuse more processes than this machine has devices, and a strategy that needs others. Raises UsageError."""
    if count == 1 and strategy == "auto":
        return
    from medseg.device import device_count, find_device

    kind = find_device(device).type
    most = MOST_PROCESSES if kind == "cpu" else device_count(kind)
    if count > most:
        raise UsageError(f"trainer.devices is {count} (expected 1 to {most}, for {kind} on this machine)")
    if strategy == "fsdp" and kind != "cuda":
        raise UsageError("trainer.strategy=fsdp needs CUDA devices", fix="use trainer.strategy=auto")
