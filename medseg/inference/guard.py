"""Says where a case lies outside of what the model was trained on; it is predicted all the same.

The plan in ``model.json`` keeps ranges over the training cases (`medseg.data.plan_choices.training_ranges`). A warning
is given, per axis of the canonical grid and per channel, where

* the spacing is more than 1.5 times the coarsest or finer than the finest / 1.5;
* the image covers more than 1.5 times the largest extent in mm or less than the smallest / 1.5;
* the image is smaller than the patch at the model's spacing, and smaller than every training case;
* a channel holds one value only;
* a channel with an absolute scale (normalised as CT, or not at all) has its 0.5 percentile below the darkest voxel
  seen, its 99.5 percentile above the brightest, no voxel as dark as the darkest of each training case, or none as
  bright as the brightest of each. All four by more than half the width of the foreground's range, so that a single
  metal implant is not named but Hounsfield units stored without their intercept are.

Channels that are normalised case by case have no absolute scale, so their intensities are not compared. A range that an
older model lacks is not compared either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medseg.data.color import in_color
from medseg.data.plan import Plan
from medseg.data.preprocess import Preprocessed
from medseg.io import Volume

FACTOR = 1.5
MARGIN = 0.5  # of the width between the foreground's 0.5 and 99.5 percentiles
ABSOLUTE = ("ct", "none", "unit", "imagenet")
SAMPLES = 1_000_000  # voxels whose percentiles are taken
AXES = {3: ("left-right", "back-front", "foot-head"), 2: ("row", "column")}


def outside_training(volume: Volume, done: Preprocessed, plan: Plan) -> tuple[str, ...]:
    """What of a case the model has not seen in training.

    Args:
        volume: as read.
        done: of the same image, from `preprocess`.
        plan: of the model.

    Returns:
        One line each, with the value and the range; empty if all is as in training.
    """
    spacing = volume.geometry.canonical().spacing
    extent = [n * mm for n, mm in zip(done.cropped_shape, spacing, strict=True)]
    return (
        *_beyond("spacing", spacing, plan),
        *_beyond("extent", extent, plan),
        *_below_patch(extent, done.resampled_shape, plan),
        *_intensities(in_color(volume, plan.color).array, plan),
    )


def _beyond(name: str, found: Sequence[float], plan: Plan) -> Iterator[str]:
    for axis, value, low, high in _axes(name, found, plan):
        if not low / FACTOR <= value <= high * FACTOR:
            yield f"{name} {value:.4g} mm along {axis} (trained on {low:.4g} to {high:.4g})"


def _below_patch(extent: Sequence[float], resampled: Sequence[int], plan: Plan) -> Iterator[str]:
    for (axis, value, low, _), size, patch in zip(
        _axes("extent", extent, plan), resampled, plan.patch_size, strict=False
    ):
        if size < patch and low / FACTOR <= value < low:
            yield f"{size} voxels along {axis} are fewer than the patch's {patch} and than any training case had"


def _axes(name: str, found: Sequence[float], plan: Plan) -> list[tuple[str, float, float, float]]:
    """Axis, value found, and the range of the training cases; nothing if the model does not know it."""
    seen = plan.ranges.get(name)
    return list(zip(AXES[len(found)], found, seen["min"], seen["max"], strict=True)) if seen else []


def _intensities(array: np.ndarray, plan: Plan) -> Iterator[str]:
    seen: Sequence[Mapping[str, float]] = plan.ranges.get("intensity") or [{}] * len(array)
    for name, channel, scheme, known in zip(plan.channel_names, array, plan.normalization, seen, strict=True):
        darkest, brightest = float(channel.min()), float(channel.max())
        if darkest == brightest:
            yield f"channel {name} is {darkest:g} everywhere"
        elif scheme["scheme"] in ABSOLUTE and known:
            flat = channel.ravel(order="K")
            low, high = np.percentile(flat[:: max(1, flat.size // SAMPLES)], (0.5, 99.5))
            yield from (f"channel {name}: {text}" for text in _off_scale(darkest, low, high, brightest, known))


def _off_scale(darkest: float, low: float, high: float, brightest: float, known: Mapping[str, Any]) -> Iterator[str]:
    margin = MARGIN * (known["percentile_99_5"] - known["percentile_00_5"])
    if low < known["case_min"] - margin:
        yield f"0.5 percentile {low:.4g} (trained on {known['case_min']:.4g} and above)"
    if high > known["case_max"] + margin:
        yield f"99.5 percentile {high:.4g} (trained on up to {known['case_max']:.4g})"
    if darkest > known.get("case_min_highest", np.inf) + margin:
        yield f"no voxel is below {darkest:.4g} (every training case went down to {known['case_min_highest']:.4g})"
    if brightest < known.get("case_max_lowest", -np.inf) - margin:
        yield f"no voxel is above {brightest:.4g} (every training case went up to {known['case_max_lowest']:.4g})"
