"""What each measure gains in one training step on a CPU: a table of ratios, all measured in this run.

    python scripts/bench_step.py [--steps 5] [--compile] [--output FILE.md]

The network is the README's: 3D U-Net, 4 stages, 32 base channels, patch 40x56x40, batch 7, Dice + cross-entropy.
Each row adds one measure to the row above it. Times are the least of the steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from medseg.blocks.norm import InstanceNorm
from medseg.device import keep_freed_memory
from medseg.losses.dice_ce import Options, make_dice_ce, plain_dice_ce
from medseg.models import create_model

PATCH, BATCH, STRIDES = (40, 56, 40), 7, [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
Loss = Callable[[Tensor, Tensor], Tensor]


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice + cross-entropy composed of PyTorch's operations."""
    return plain_dice_ce(logits.float(), labels, Options(1.0, 1.0, True, False, 1e-5))


def seconds_per_step(network: nn.Module, loss: Loss, *, bf16: bool, channels_last: bool, steps: int) -> float:
    """Least time of a step: forward, loss, backward, AdamW."""
    image, labels = torch.randn(BATCH, 1, *PATCH), torch.randint(0, 3, (BATCH, 1, *PATCH))
    if channels_last:
        network, image = (
            network.to(memory_format=torch.channels_last_3d),
            image.to(memory_format=torch.channels_last_3d),
        )
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            logits = network(image)
        optimizer.zero_grad()
        loss(logits, labels).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure(steps: int, compiled: bool) -> list[tuple[str, float]]:
    """Rows of (measure, seconds per step)."""

    def run(loss: Loss, *, fused_norm: bool, bf16: bool, channels_last: bool, compile: bool = False) -> float:
        torch.manual_seed(0)
        network = create_model("unet", out_channels=3, strides=STRIDES)
        plain_norm = nullcontext() if fused_norm else mock.patch.object(InstanceNorm, "_fused", return_value=False)
        with plain_norm:
            model = torch.compile(network) if compile else network
            return seconds_per_step(model, loss, bf16=bf16, channels_last=channels_last, steps=steps)

    fused = make_dice_ce()
    best = {"fused_norm": True, "bf16": True, "channels_last": True}
    rows = [("fp32, contiguous, eager", run(plain_loss, fused_norm=False, bf16=False, channels_last=False))]
    rows += [("+ channels-last-3d", run(plain_loss, fused_norm=False, bf16=False, channels_last=True))]
    rows += [("+ bf16 autocast", run(plain_loss, fused_norm=False, bf16=True, channels_last=True))]
    rows += [("+ instance norm and LeakyReLU in one pass", run(plain_loss, **best))]
    rows += [("+ Dice + cross-entropy in one pass", run(fused, **best))]
    keep_freed_memory()  # cannot be undone in a process, so it comes last
    rows += [("+ freed memory kept (medseg's default)", run(fused, **best))]
    if compiled:
        rows += [("+ torch.compile (instead of the fused norm)", run(fused, **best, compile=True))]
    return rows


def table(rows: list[tuple[str, float]]) -> str:
    """Markdown."""
    lines = ["| measure | s per step | times as fast as the first row | than the row above |", "|---|---|---|---|"]
    before = rows[0][1]
    for name, seconds in rows:
        lines.append(f"| {name} | {seconds:.2f} | {rows[0][1] / seconds:.2f} | {before / seconds:.2f} |")
        before = seconds
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too (minutes)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    text = table(measure(options.steps, options.compile))
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
