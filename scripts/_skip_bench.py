"""What both tables of bench_skips.py need: the trunk with its families of skips, a short training, Dice, kept rows."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from _skip_data import Example
from torch import Tensor, nn

from medseg.device import DeviceProfile
from medseg.evaluation import evaluate_arrays
from medseg.models import create_model
from medseg.targets import Target
from medseg.training.schedule import learning_rate_factor

FAMILIES: dict[str, Any] = {
    "concat": None,
    "no skips": {"edit": {"name": "scale", "bottom": 0, "top": 0}},
    "add": "add",
    "gated_add": "gated_add",
    "attention_gate": "attention_gate",
    "squeeze_excite": {"edit": "squeeze_excite"},
    "multi_dilated": {"edit": "multi_dilated"},
    "sc_tuner": {"edit": "sc_tuner"},
    "dense_fpn": {"pyramid": "dense_fpn"},
    "spatial_context": {"pyramid": "spatial_context"},
    "nested (UNet++)": "unetpp_nnunet",
}
WIDTH, DEPTH, BATCH = {2: 16, 3: 10}, 3, {2: 8, 3: 2}


def build(family: str, spatial_dims: int, width: int, classes: int, channels: int = 1) -> nn.Module:
    """The trunk with a family of skips."""
    skips = FAMILIES[family]
    name, more = (skips, {"deep_supervision": False}) if family.startswith("nested") else ("unet", {"skips": skips})
    return create_model(
        name, spatial_dims=spatial_dims, in_channels=channels, out_channels=classes, base_channels=width, depth=DEPTH,
        **more,
    )  # fmt: skip


def step(model: nn.Module, image: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    model(image).square().mean().backward()
    return time.perf_counter() - start


def parameters(model: nn.Module) -> int:
    """How many."""
    return sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class Budget:
    """Of a training: minutes of wall clock, or steps, which other work on the machine does not change."""

    minutes: float
    steps: int | None = None

    def __str__(self) -> str:
        return f"{self.steps}steps" if self.steps else f"{self.minutes:g}min"

    def spent(self, start: float, steps: int) -> float:
        """Share of it that is used up, 1 at its end."""
        return steps / self.steps if self.steps else (time.monotonic() - start) / (60 * self.minutes)


def fit(
    model: nn.Module, cases: Sequence[Example], target: Target, profile: DeviceProfile, *, budget: Budget, seed: int,
    lr: float = 3e-3,
) -> int:  # fmt: skip
    """Train what requires a gradient for so long; returns the steps."""
    generator = torch.Generator().manual_seed(seed)
    profile.place(model).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr, weight_decay=0.01)
    batch, start, steps = BATCH[cases[0][1].ndim - 1], time.monotonic(), 0
    while (progress := budget.spent(start, steps)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate_factor(progress, "cosine", 0.05)
        drawn = [cases[i] for i in torch.randint(len(cases), (batch,), generator=generator)]
        image, label = (torch.stack([one[k] for one in drawn]) for k in (1, 2))
        image = image * (0.9 + 0.2 * torch.rand(batch, *(1,) * (image.ndim - 1), generator=generator))
        image = image + 0.1 * torch.randn(image.shape, generator=generator)
        with profile.autocast():
            logits = model(profile.place_batch(image))
        optimizer.zero_grad()
        target.loss(logits, target.encode(label)).backward()
        nn.utils.clip_grad_norm_(trained, 12.0)
        optimizer.step()
        steps += 1
    return steps


@torch.no_grad()
def score(model: nn.Module, cases: Sequence[Example], target: Target, profile: DeviceProfile) -> dict[str, float]:
    """Case -> mean foreground Dice."""
    model.eval()
    values = [value for value in target.to_dict()["labels"].values() if value]
    found = {}
    for case, image, label in cases:
        predicted = target.decode(target.activate(profile.run(model, image[None])))[0].numpy()
        rows = evaluate_arrays(
            predicted, label[0].numpy(), spacing=[1.0] * (image.ndim - 1), labels=values, metrics=["dice"]
        )
        known = [row["dice"] for row in rows.values() if row["dice"] is not None]
        found[case] = fmean(known) if known else 1.0
    return found


class Rows:
    """Rows of a table, kept in a file; a row that is there is not measured again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The row with these values."""
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.rows.append(row)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.rows, indent=1))
