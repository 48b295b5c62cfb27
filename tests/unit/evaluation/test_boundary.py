"""Boundaries agree with the tools that define them, and the fast path with the slow one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import ndimage

from medseg.evaluation import evaluate_arrays
from medseg.evaluation.boundary import distance_by_transform, distance_by_tree, voxel_boundary
from medseg.evaluation.surfels import element_sizes

METRICS = ("hausdorff_distance", "hausdorff_distance_95", "assd", "nsd")
Pair = tuple[np.ndarray, np.ndarray, tuple[float, ...], float]


def random_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One voxel, noise, or a smooth blob; most touch the border."""
    kind = rng.integers(4)
    if kind == 0:
        mask = np.zeros(shape, bool)
        mask[tuple(rng.integers(0, shape))] = True
        return mask
    if kind == 1:
        return rng.random(shape) < 0.3
    field = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    return field >= np.quantile(field, rng.choice([0.5, 0.8, 0.95]))


def pairs(count: int) -> Iterator[Pair]:
    rng = np.random.default_rng(7)
    while count:
        dims = int(rng.integers(2, 4))
        shape = tuple(int(size) for size in rng.integers(3, 20, dims))
        spacing = tuple(float(size) for size in rng.choice([0.5, 0.7, 1, 1.5, 3.3], dims))
        prediction, reference = random_mask(rng, shape), random_mask(rng, shape)
        if prediction.any() and reference.any():
            count -= 1
            yield prediction, reference, spacing, float(rng.choice([0.6, 1.1, 2.3]))


def ours(pair: Pair, surface: str) -> list[float]:
    prediction, reference, spacing, tolerance = pair
    scores = evaluate_arrays(
        prediction, reference, spacing=spacing, labels=[1], metrics=METRICS, tolerance=tolerance, surface=surface
    )[1]
    return [scores[name] for name in METRICS]


def test_voxel_agrees_with_monai() -> None:
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    for pair in pairs(60):
        prediction, reference, spacing, tolerance = pair
        one_hot = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]
        settings = {"include_background": True, "spacing": list(spacing)}
        theirs = [
            monai.compute_hausdorff_distance(*one_hot, **settings),
            monai.compute_hausdorff_distance(*one_hot, percentile=95, **settings),
            monai.compute_average_surface_distance(*one_hot, symmetric=True, **settings),
            monai.compute_surface_dice(*one_hot, [tolerance], **settings),
        ]
        assert ours(pair, "voxel") == pytest.approx([float(value) for value in theirs], abs=1e-5)


def test_surfel_agrees_with_surface_distance() -> None:
    surface_distance = pytest.importorskip("surface_distance")
    for pair in pairs(60):
        prediction, reference, spacing, tolerance = pair
        distances = surface_distance.compute_surface_distances(reference, prediction, spacing)
        areas = [distances[f"surfel_areas_{side}"].sum() for side in ("gt", "pred")]
        theirs = [
            surface_distance.compute_robust_hausdorff(distances, 100),
            surface_distance.compute_robust_hausdorff(distances, 95),
            np.average(surface_distance.compute_average_surface_distance(distances), weights=areas),
            # A distance that equals the tolerance falls on either side of it there, by the last bit.
            surface_distance.compute_surface_dice_at_tolerance(distances, tolerance * (1 + 1e-6)),
        ]
        assert ours(pair, "surfel") == pytest.approx(theirs, abs=1e-5)


def test_tree_and_transform_give_the_same_distances() -> None:
    for prediction, reference, spacing, _ in pairs(20):
        fast, slow = (
            distance(voxel_boundary(prediction), voxel_boundary(reference), spacing)
            for distance in (distance_by_tree, distance_by_transform)
        )
        assert fast == pytest.approx(slow, abs=1e-5)


def test_voxel_boundary_is_what_erosion_takes() -> None:
    for prediction, *_ in pairs(20):
        assert np.array_equal(voxel_boundary(prediction), prediction & ~ndimage.binary_erosion(prediction))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_contour_lengths(spacing: tuple[float, float]) -> None:
    sizes = element_sizes(spacing)
    corner = np.hypot(*spacing) / 2
    # Bits are the corners (0, 0), (0, 1), (1, 0), (1, 1).
    assert sizes[[0b0000, 0b1111]] == pytest.approx([0, 0])
    assert sizes[[0b0001, 0b1000, 0b0111, 0b1011]] == pytest.approx([corner] * 4)
    assert sizes[[0b0011, 0b1100]] == pytest.approx([spacing[1]] * 2)
    assert sizes[[0b0101, 0b1010]] == pytest.approx([spacing[0]] * 2)
    assert sizes[[0b0110, 0b1001]] == pytest.approx([2 * corner] * 2)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 2.0, 3.0)])
def test_surface_areas(spacing: tuple[float, float, float]) -> None:
    a, b, c = spacing
    sizes = element_sizes(spacing)
    corner = np.linalg.norm([b * c, a * c, a * b]) / 8
    assert sizes[[0, 255]] == pytest.approx([0, 0])
    assert sizes[[1, 2, 4, 8, 16, 32, 64, 128]] == pytest.approx([corner] * 8)
    assert sizes[0b00001111] == pytest.approx(b * c)  # the four corners with first index 0: a plane
    assert sizes[0b00000011] == pytest.approx(c * np.hypot(a, b) / 2)  # an edge along the last axis: a roof
    assert sizes[0b10000001] == pytest.approx(2 * corner)  # opposite corners
    assert sizes == pytest.approx(sizes[::-1])  # foreground and background have the same boundary


def test_area_of_a_ball_is_near_the_spheres() -> None:
    axes = np.ogrid[:50, :50, :50]
    ball = sum((axis - 24.5) ** 2 for axis in axes) < 20**2
    from medseg.evaluation.surfels import cell_codes

    area = element_sizes((1.0, 1.0, 1.0))[cell_codes(ball)].sum()
    assert area == pytest.approx(4 * np.pi * 20**2, rel=0.1)
