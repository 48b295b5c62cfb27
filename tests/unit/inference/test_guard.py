"""The input guard names what the model has not seen, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.data.dataset import open_dataset
from medseg.data.fingerprint import make_fingerprint
from medseg.data.plan import Plan, make_plan
from medseg.data.preprocess import preprocess
from medseg.inference.guard import outside_training
from medseg.io import Geometry, Volume, read_volume

CT = {"scheme": "ct", "lower": -100.0, "upper": 300.0, "mean": 100.0, "std": 80.0}
RANGES = {
    "cases": 9,
    "spacing": {"min": [0.6, 0.6, 1.0], "max": [0.9, 0.9, 5.0]},
    "extent": {"min": [20.0, 20.0, 30.0], "max": [40.0, 40.0, 90.0]},
    "intensity": [
        {
            "percentile_00_5": -100.0, "percentile_99_5": 300.0, "case_min": -1100.0, "case_min_highest": -1000.0,
            "case_max_lowest": 1200.0, "case_max": 3071.0,
        }
    ],
}  # fmt: skip


def plan(**changes: Any) -> Plan:
    settings = {
        "dataset": "d", "spatial_dims": 3, "channel_names": ["CT"], "labels": {"background": 0, "organ": 1},
        "ignore_label": None, "spacing": (0.75, 0.75, 2.5), "patch_size": [32, 32, 16], "batch_size": 1,
        "strides": [[1, 1, 1]], "normalization": [CT], "crop_nonzero": False, "mirror_axes": [], "mirror_swaps": {},
        "ranges": RANGES,
    }  # fmt: skip
    return Plan.from_dict({**settings, **changes})


def warnings(
    spacing: tuple[float, float, float] = (0.75, 0.75, 2.5),
    shape: tuple[int, int, int] = (40, 40, 20),
    scale: float = 1,
    shift: float = 0,
    settings: Plan | None = None,
) -> tuple[str, ...]:
    """Of a CT of air, tissue and bone."""
    rng = np.random.default_rng(0)
    array = rng.choice([-1024.0, 40.0, 1500.0], (1, *shape), p=[0.4, 0.5, 0.1]).astype(np.float32) * scale + shift
    volume, settings = Volume(array, Geometry(shape, np.diag([*spacing, 1.0]))), settings or plan()
    return outside_training(volume, preprocess(volume, settings)[1], settings)


def test_a_case_as_in_training() -> None:
    assert warnings() == ()
    assert warnings(spacing=(0.42, 0.42, 6.0), shape=(60, 60, 14)) == ()  # within a factor of 1.5


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"spacing": (0.75, 0.75, 8.0), "shape": (40, 40, 10)}, "spacing 8 mm along foot-head (trained on 1 to 5)"),
        ({"spacing": (0.3, 0.75, 2.5), "shape": (90, 40, 20)}, "spacing 0.3 mm along left-right (trained on 0.6"),
        ({"shape": (40, 100, 20)}, "extent 75 mm along back-front (trained on 20 to 40)"),
        ({"shape": (40, 40, 7)}, "extent 17.5 mm along foot-head (trained on 30 to 90)"),
        ({"shape": (24, 40, 20)}, "24 voxels along left-right are fewer than the patch's 32"),
        ({"shift": 1024}, "channel CT: no voxel is below 0 (every training case went down to -1000)"),
        ({"scale": 4}, "channel CT: 0.5 percentile -4096 (trained on -1100 and above)"),
        ({"scale": 4}, "channel CT: 99.5 percentile 6000 (trained on up to 3071)"),
        ({"scale": 0.1}, "channel CT: no voxel is above 150 (every training case went up to 1200)"),
        ({"scale": 0}, "channel CT is 0 everywhere"),
    ],
)  # fmt: skip
def test_what_lies_outside_is_named(case: dict[str, Any], expected: str) -> None:
    assert any(line.startswith(expected) for line in warnings(**case)), warnings(**case)


def test_channels_without_a_scale_and_models_without_ranges() -> None:
    relative = plan(normalization=[{"scheme": "zscore", "nonzero": False}])
    assert warnings(scale=100, settings=relative) == ()
    assert warnings(scale=100, spacing=(9, 9, 9), settings=plan(ranges={})) == ()
    newer = ("case_min_highest", "case_max_lowest")
    known = {name: value for name, value in RANGES["intensity"][0].items() if name not in newer}
    older = {"spacing": RANGES["spacing"], "intensity": [known]}
    assert warnings(shift=1024, settings=plan(ranges=older)) == ()
    assert len(warnings(scale=4, settings=plan(ranges=older))) == 2


def test_axes_are_those_of_the_body_whatever_the_file_order() -> None:
    affine = np.array([[0, 0, 0.75, 0], [0, -0.75, 0, 0], [8.0, 0, 0, 0], [0, 0, 0, 1]])
    volume = Volume(
        np.random.default_rng(0).normal(0, 900, (1, 10, 40, 40)).astype(np.float32), Geometry((10, 40, 40), affine)
    )
    lines = outside_training(volume, preprocess(volume, plan())[1], plan())
    assert lines[0] == "spacing 8 mm along foot-head (trained on 1 to 5)"


def test_no_training_case_is_outside_of_its_own_plan(tiny_phantoms: Path) -> None:
    dataset = open_dataset(tiny_phantoms)
    made = make_plan(make_fingerprint(dataset, progress=False, workers=0))
    for case in dataset.training:
        volume = read_volume(case.images[0])
        assert outside_training(volume, preprocess(volume, made)[1], made) == ()


def test_warnings_reach_the_segmentation_and_the_log(
    threshold_predictor: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        segmentation = threshold_predictor().predict(np.zeros((8, 8, 8)), spacing=(1, 1, 1), case="A")
    assert segmentation.warnings == ("channel MR is 0 everywhere",)
    assert "case A: channel MR is 0 everywhere" in caplog.text
