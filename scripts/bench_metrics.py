"""Time and agreement of the metrics against MONAI and surface-distance, all in one run on one pair of label maps.

    python scripts/bench_metrics.py [--size 192] [--classes 4] [--repeats 5]
    python scripts/bench_metrics.py --many    time and memory against the number of classes, 512 x 512 x 400 voxels

Dice, IoU, HD95, ASSD and NSD at 1 mm for every class; spacing 1.5x1x1 mm. surface-distance (``pip install
medseg[bench]``) is left out of the table where it is not installed.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from medseg.evaluation import evaluate_arrays

SPACING, TOLERANCE = (1.5, 1.0, 1.0), 1.0
METRICS = ("dice", "iou", "hausdorff_distance_95", "assd", "nsd")
Values = list[tuple[float, ...]]


def make_pair(size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reference and prediction: ellipsoids on a grid, the predicted ones shifted by two voxels and a little smaller."""
    side = int(np.ceil(classes ** (1 / 3)))
    pitch = size / side
    axes = np.ogrid[:size, :size, :size]
    reference, prediction = np.zeros((size,) * 3, np.uint8), np.zeros((size,) * 3, np.uint8)
    for label in range(1, classes + 1):
        centre = (np.array(np.unravel_index(label - 1, (side,) * 3)) + 0.5) * pitch
        for array, shift, radius in ((reference, 0, 0.38 * pitch), (prediction, 2, 0.37 * pitch)):
            stretch = (1.0, 0.9, 1.15)
            parts = ((axis - middle - shift) / s for axis, middle, s in zip(axes, centre, stretch, strict=True))
            array[sum(part**2 for part in parts) < radius**2] = label
    return prediction, reference


def ours(surface: str) -> Callable[[np.ndarray, np.ndarray, Sequence[int]], Values]:
    def run(prediction: np.ndarray, reference: np.ndarray, labels: Sequence[int]) -> Values:
        scores = evaluate_arrays(
            prediction, reference, spacing=SPACING, labels=labels, metrics=METRICS, tolerance=TOLERANCE, surface=surface
        )
        return [tuple(scores[label][name] for name in METRICS) for label in labels]

    return run


def monai(prediction: np.ndarray, reference: np.ndarray, labels: Sequence[int]) -> Values:
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
        compute_surface_dice,
    )

    y_pred, y = (
        torch.from_numpy(np.stack([array == label for label in labels]))[None] for array in (prediction, reference)
    )
    settings: dict[str, Any] = {"include_background": True, "spacing": list(SPACING)}
    results = (
        compute_dice(y_pred, y),
        compute_iou(y_pred, y),
        compute_hausdorff_distance(y_pred, y, percentile=95, **settings),
        compute_average_surface_distance(y_pred, y, symmetric=True, **settings),
        compute_surface_dice(y_pred, y, [TOLERANCE] * len(labels), **settings),
    )
    return list(zip(*(result[0].tolist() for result in results), strict=True))


def surface_distance(prediction: np.ndarray, reference: np.ndarray, labels: Sequence[int]) -> Values:
    from surface_distance import metrics as sd

    values: Values = []
    for label in labels:
        p, r = prediction == label, reference == label
        dice = sd.compute_dice_coefficient(r, p)
        distances = sd.compute_surface_distances(r, p, SPACING)
        areas = [distances[f"surfel_areas_{side}"].sum() for side in ("gt", "pred")]
        assd = np.average(sd.compute_average_surface_distance(distances), weights=areas)
        hd95 = sd.compute_robust_hausdorff(distances, 95)
        values.append((dice, dice / (2 - dice), hd95, assd, sd.compute_surface_dice_at_tolerance(distances, TOLERANCE)))
    return values


def measure(function: Callable[..., Values], arguments: tuple[Any, ...], repeats: int) -> tuple[float, Values]:
    """Best time in seconds of ``repeats`` runs after one that warms up, and the values."""
    values, best = function(*arguments), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function(*arguments)
        best = min(best, time.perf_counter() - start)
    return best, values


def many_classes(classes: int) -> tuple[float, float]:
    """Seconds, and GiB of memory above the two label maps, for boxes of some millilitres."""
    shape, rng = (512, 512, 400), np.random.default_rng(0)
    reference, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for label in range(1, classes + 1):
        start, size = rng.integers(0, [n - 60 for n in shape]), rng.integers(12, 50, 3)
        for array, shift in ((reference, 0), (prediction, 2)):
            array[tuple(slice(a + shift, a + shift + n) for a, n in zip(start, size, strict=True))] = label
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    ours("surfel")(prediction, reference, list(range(1, classes + 1)))
    return time.perf_counter() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=192, help="voxels along each axis")
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--many", action="store_true")
    chosen = parser.parse_args()
    if chosen.many:
        table = Table("classes", "seconds", "GiB", title="512 x 512 x 400 voxels; each row in a process of its own")
        for classes in (1, 4, 25, 100):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                seconds, gib = process.submit(many_classes, classes).result()
            table.add_row(str(classes), f"{seconds:.1f}", f"{gib:.2f}")
        Console().print(table)
        return
    labels = list(range(1, chosen.classes + 1))
    arguments = (*make_pair(chosen.size, chosen.classes), labels)
    table = Table(
        "surface",
        "tool",
        "seconds",
        "ours is faster by",
        "largest difference",
        title=f"{chosen.size}³ voxels, {chosen.classes} classes",
    )
    for surface, name, other in (("voxel", "MONAI", monai), ("surfel", "surface-distance", surface_distance)):
        seconds, values = measure(ours(surface), arguments, chosen.repeats)
        table.add_row(surface, "medseg", f"{seconds:.3f}", "", "")
        try:
            their_seconds, theirs = measure(other, arguments, max(1, chosen.repeats // 2))
        except ImportError:
            table.add_row(surface, name, "not installed", "", "")
            continue
        difference = np.abs(np.subtract(values, theirs)).max()
        table.add_row(surface, name, f"{their_seconds:.3f}", f"{their_seconds / seconds:.1f}x", f"{difference:.1e}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
