"""Do we compute what others compute? Largest differences to MONAI, surface-distance and plain counting on many pairs.

    python scripts/bench_agreement.py [--pairs 240]

Random and structured pairs of masks in 2D and 3D, with isotropic and anisotropic spacing: blobs, boxes that touch the
border, single voxels, masks far apart, identical ones, noise; and, where the dataset is on this machine, hippocampus
labels against shifted and eroded ones. ``voxel`` metrics are compared with MONAI, ``surfel`` metrics with
surface-distance (``pip install medseg[bench]``), overlap with a count by hand. Empty masks are left out here: they have
rules of their own, which the tools do not share.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import torch
from scipy import ndimage

from medseg.data.catalogue import CATALOGUE, data_folders
from medseg.data.dataset import open_dataset
from medseg.evaluation import evaluate_arrays
from medseg.io import read_labels

TOLERANCE = 1.3
BOUNDARY = ("hausdorff_distance", "hausdorff_distance_95", "assd", "nsd")
Pair = tuple[np.ndarray, np.ndarray, tuple[float, ...]]


def make_pairs(count: int, seed: int = 0) -> Iterator[Pair]:
    """Prediction and reference (*S) bool, neither empty, and the spacing in mm."""
    made = 0
    while made < count:
        rng = np.random.default_rng([seed, made])
        dims = 2 + made % 2
        shape = tuple(int(n) for n in rng.integers(6, 28, dims))
        spacing = tuple(float(s) for s in rng.choice([0.5, 0.8, 1.0, 1.5, 3.0], dims))
        yield *KINDS[made % len(KINDS)](rng, shape), spacing
        made += 1


def blobs(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random shape and a distorted one."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    other = field + 0.5 * ndimage.gaussian_filter(rng.normal(size=shape), 2)
    return other > np.quantile(other, 0.7), field > np.quantile(field, 0.7)


def boxes_at_the_border(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two boxes that the border of the image cuts off."""
    masks = np.zeros((2, *shape), bool)
    for mask in masks:
        mask[tuple(slice(0, int(rng.integers(1, n + 1))) for n in shape)] = True
    return masks[0], masks[1]


def single_voxels(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """One voxel each, maybe the same."""
    masks = np.zeros((2, *shape), bool)
    for mask in masks:
        mask[tuple(int(rng.integers(n)) for n in shape)] = True
    return masks[0], masks[1]


def noise(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels at random."""
    masks = rng.random((2, *shape)) < 0.3
    masks[(slice(None), *(0 for _ in shape))] = True
    return masks[0], masks[1]


def nearly_the_same(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A shape and itself, grown by a layer in half of the cases."""
    mask, _ = blobs(rng, shape)
    return (ndimage.binary_dilation(mask) if rng.random() < 0.5 else mask), mask


KINDS = (blobs, boxes_at_the_border, single_voxels, noise, nearly_the_same)


def real_pairs(count: int) -> Iterator[Pair]:
    """Hippocampus labels, moved or eroded; nothing where the dataset is not on this machine."""
    names = CATALOGUE["hippocampus"].folders
    found = [folder / name for folder in data_folders() for name in names if (folder / name / "dataset.json").is_file()]
    for number, case in enumerate(open_dataset(found[0]).training[:count] if found else ()):
        if case.label is None:
            continue
        volume = read_labels(case.label)
        reference = volume.array[0] == 1 + number % 2
        prediction = ndimage.binary_erosion(reference) if number % 3 else np.roll(reference, 2, axis=number % 3)
        if prediction.any() and reference.any():
            yield prediction, reference, volume.spacing


def monai_values(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    """MONAI's boundary metrics."""
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]
    settings = {"include_background": True, "spacing": list(spacing)}
    return {
        "hausdorff_distance": float(compute_hausdorff_distance(*pair, **settings)),
        "hausdorff_distance_95": float(compute_hausdorff_distance(*pair, percentile=95, **settings)),
        "assd": float(compute_average_surface_distance(*pair, symmetric=True, **settings)),
        "nsd": float(compute_surface_dice(*pair, [TOLERANCE], **settings)),
    }


def surface_distance_values(
    prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]
) -> dict[str, float]:
    """surface-distance's boundary metrics."""
    from surface_distance import metrics as sd

    found = sd.compute_surface_distances(reference, prediction, spacing)
    areas = [found[f"surfel_areas_{side}"].sum() for side in ("gt", "pred")]
    return {
        "hausdorff_distance": sd.compute_robust_hausdorff(found, 100),
        "hausdorff_distance_95": sd.compute_robust_hausdorff(found, 95),
        "assd": float(np.average(sd.compute_average_surface_distance(found), weights=areas)),
        "nsd": sd.compute_surface_dice_at_tolerance(found, TOLERANCE),
    }


def counted_values(prediction: np.ndarray, reference: np.ndarray, _: tuple[float, ...]) -> dict[str, float]:
    """Overlap, counted voxel by voxel."""
    pairs = list(zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True))
    tp, fp, fn = (sum(pair == wanted for pair in pairs) for wanted in ((True, True), (True, False), (False, True)))
    return {"dice": 2 * tp / (2 * tp + fp + fn), "iou": tp / (tp + fp + fn)}


def agreement(pairs: list[Pair]) -> dict[tuple[str, str], float]:
    """(tool, metric) -> largest difference over all pairs."""
    tools = {("voxel", "MONAI"): monai_values, ("voxel", "counting"): counted_values}
    if find_spec("surface_distance"):
        tools["surfel", "surface-distance"] = surface_distance_values
    worst: dict[tuple[str, str], float] = {}
    for prediction, reference, spacing in pairs:
        for (surface, tool), values_of in tools.items():
            theirs = values_of(prediction, reference, spacing)
            ours = evaluate_arrays(
                prediction, reference, spacing=spacing, labels=[1], metrics=list(theirs), tolerance=TOLERANCE,
                surface=surface,
            )[1]  # fmt: skip
            for metric, value in theirs.items():
                worst[tool, metric] = max(worst.get((tool, metric), 0.0), abs(value - float(ours[metric] or 0.0)))
    return worst


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=240, help="made pairs; 40 real ones are added where they exist")
    pairs = list(make_pairs(parser.parse_args().pairs))
    real = list(real_pairs(40))
    print(f"{len(pairs)} made and {len(real)} real pairs\n| with | metric | largest difference |\n|---|---|---|")
    for (tool, metric), difference in agreement([*pairs, *real]).items():
        print(f"| {tool} | {metric} | {difference:.1e} |")


if __name__ == "__main__":
    main()
