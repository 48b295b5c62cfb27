"""The losses of short trainings are the recorded ones: a change that moves them was meant to, or is a bug.

``python tests/golden/test_recorded_losses.py`` records them anew; say in the commit why they moved.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.compose import compose
from medseg.data.phantom import write_phantoms
from medseg.models import MODELS, create_model
from medseg.targets import ExclusiveClasses, Landmarks, Target
from medseg.testing import gives_points

RECORD = Path(__file__).with_name("losses.json")
TOLERANCE = 1e-3  # relative; processors and thread counts differ by 1e-5 in so few steps
TOLERANCE_OF_TRAINING = 1e-2  # after twenty steps of AdamW
LABELS = {"background": 0, "organ": 1, "lesion": 2}
STEPS = 4


def model_losses(name: str) -> list[float]:
    """Loss of each of a few SGD steps of a tiny model in float32 on one fixed batch of 2D squares."""
    torch.manual_seed(0)
    wanted = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "base_channels": 4, "deep_supervision": True}
    wanted |= {"widths": (8, 16, 16), "num_heads": 2, "image_size": 32, "structures": (6, 5)}
    wanted |= {"depth": 2} if "depth" in MODELS.arguments(name) else {"strides": [1, 2, 2]}
    model = create_model(name, **{key: value for key, value in wanted.items() if key in MODELS.arguments(name)})
    points = Landmarks(structures={"organ": 6, "lesion": 5}, labels=LABELS, from_masks=True)
    target: Target = points if gives_points(model) else ExclusiveClasses(labels=LABELS)
    rate = 0.0002 if gives_points(model) else 0.002  # larger steps tell processors apart
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    label = torch.zeros(2, 1, 32, 32, dtype=torch.int64)
    label[:, :, 6:24, 8:26], label[:, :, 12:18, 12:20] = 1, 2
    image = label + 0.5 * torch.randn(label.shape)
    return [_step(model, optimizer, target, image, label) for _ in range(STEPS)]


def _step(
    model: Any, optimizer: torch.optim.Optimizer, target: Target, image: torch.Tensor, label: torch.Tensor
) -> float:
    loss = target.loss(model(image), target.encode(label))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def training_losses(folder: Path) -> list[float]:
    """Every twentieth loss of ``medseg train`` on tiny phantoms: data, sampling, augmentation, model, optimiser."""
    from medseg.training import fit

    write_phantoms(folder / "data", cases=4, test_cases=0, shape=(32, 28, 24))
    words = [f"data={folder / 'data'}", f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}", "data.folds=2"]
    words += ["data.loader_workers=0", "model.base_channels=4", "trainer.max_epochs=1", "trainer.steps_per_epoch=20"]
    words += ["trainer.precision=fp32", "trainer.device=cpu", "trainer.progress=false", "trainer.tensorboard=false"]
    words += ["plan.batch_size=2", "plan.patch_size=[32,32,32]", "trainer.threads=1"]
    run = fit(compose("train", words))
    rows = csv.DictReader((run / "logs" / "version_0" / "metrics.csv").open(encoding="utf-8"))
    return [float(row["train/loss"]) for row in rows if row["train/loss"]]


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[float]]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODELS.names())
def test_model_losses_are_the_recorded_ones(name: str, recorded: dict[str, list[float]]) -> None:
    assert model_losses(name) == pytest.approx(recorded[name], rel=TOLERANCE)


def test_training_losses_are_the_recorded_ones(tmp_path: Path, recorded: dict[str, list[float]]) -> None:
    assert training_losses(tmp_path) == pytest.approx(recorded["medseg train"], rel=TOLERANCE_OF_TRAINING)


if __name__ == "__main__":
    losses = {name: model_losses(name) for name in MODELS.names()}
    with tempfile.TemporaryDirectory() as scratch:
        losses["medseg train"] = training_losses(Path(scratch))
    RECORD.write_text(json.dumps(losses, indent=1) + "\n", encoding="utf-8")
