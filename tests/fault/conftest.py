"""A tiny model, images and the command itself, for the tests of what commands do to files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

LABELS = {"background": 0, "organ": 1}
PLAN = {
    "dataset": "d", "spatial_dims": 3, "channel_names": ["MR"], "labels": LABELS, "ignore_label": None,
    "spacing": [1.0, 1.0, 1.0], "patch_size": [8, 8, 8], "batch_size": 1, "strides": [[1, 1, 1], [2, 2, 2]],
    "normalization": [{"scheme": "none"}], "crop_nonzero": False, "mirror_axes": [], "mirror_swaps": {},
}  # fmt: skip
MODEL = {"name": "unet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "base_channels": 4,
         "strides": PLAN["strides"], "dropout": 0.1}  # fmt: skip


def _write_model(folder: Path) -> None:
    import torch

    from medseg.io import save_model
    from medseg.models import create_model
    from medseg.targets import ExclusiveClasses

    torch.manual_seed(0)
    target = ExclusiveClasses(labels=LABELS).to_dict()
    save_model(folder, create_model(**MODEL).state_dict(), {"model": MODEL, "target": target, "plan": PLAN})


def _write_image(path: Path, seed: int, labels: bool = False) -> Path:
    import nibabel as nib
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).random((9, 8, 10), np.float32)
    nib.save(nib.Nifti1Image((array > 0.5).astype(np.uint8) if labels else array, np.eye(4)), path)
    return path


def _tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _run(command: str) -> int:
    from medseg.cli import main

    with pytest.raises(SystemExit) as end:
        main(command.split())
    return int(end.value.code or 0)


@pytest.fixture(scope="session")
def write_model() -> Callable[[Path], None]:
    """Writes the folder of an untrained network for volumes of one channel."""
    return _write_model


@pytest.fixture(scope="session")
def write_image() -> Callable[..., Path]:
    """Writes a volume of noise, or with ``labels=True`` of labels: ``write_image(path, seed)``."""
    return _write_image


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """Digests of all files of a folder, by their paths in it."""
    return _tree


@pytest.fixture(scope="session")
def run() -> Callable[[str], int]:
    """Runs a ``medseg`` command in this process; gives its exit code."""
    return _run
