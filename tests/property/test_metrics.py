"""What must hold for every pair of masks: symmetry, identity, axis order, flips, units, tolerance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg.evaluation import METRICS, evaluate_arrays

SYMMETRIC = ("dice", "iou", "hausdorff_distance", "hausdorff_distance_95", "assd", "nsd")
SURFACES = st.sampled_from(["voxel", "surfel"])
SPACING = st.sampled_from([0.5, 0.8, 1.0, 1.5, 3.0])


@st.composite
def label_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7))
    maps = hnp.arrays(np.uint8, shape, elements=st.integers(0, 2))
    spacing = tuple(draw(SPACING) for _ in shape)
    return draw(maps), draw(maps), spacing


def evaluate(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], **options: object) -> dict:
    arguments = {"labels": [1, 2], "metrics": SYMMETRIC, **options}
    return evaluate_arrays(prediction, reference, spacing=spacing, **arguments)


def assert_same(first: dict, second: dict) -> None:
    for label, scores in first.items():
        for name, value in scores.items():
            other = second[label][name]
            assert value == (None if other is None else pytest.approx(other, rel=1e-5, abs=1e-6)), (label, name)


@settings(max_examples=60, deadline=None)
@given(label_pairs(), SURFACES)
def test_prediction_and_reference_may_be_exchanged(pair: tuple, surface: str) -> None:
    a, b, spacing = pair
    assert_same(evaluate(a, b, spacing, surface=surface), evaluate(b, a, spacing, surface=surface))


@settings(max_examples=40, deadline=None)
@given(label_pairs(), SURFACES)
def test_a_map_equals_itself(pair: tuple, surface: str) -> None:
    a, _, spacing = pair
    for label, scores in evaluate(a, a, spacing, surface=surface, tolerance=0.0).items():
        for name, value in scores.items():
            assert value == (METRICS.build(name).best if (a == label).any() else None)


@settings(max_examples=60, deadline=None)
@given(label_pairs(), SURFACES, st.randoms(use_true_random=False))
def test_axis_order_and_flips_change_nothing(pair: tuple, surface: str, random: object) -> None:
    a, b, spacing = pair
    order = random.sample(range(a.ndim), a.ndim)
    flips = [axis for axis in range(a.ndim) if random.random() < 0.5]
    turned = [np.flip(array.transpose(order), flips) for array in (a, b)]
    assert_same(
        evaluate(a, b, spacing, surface=surface),
        evaluate(*turned, tuple(spacing[axis] for axis in order), surface=surface),
    )


@settings(max_examples=60, deadline=None)
@given(label_pairs(), SURFACES, st.sampled_from([0.1, 0.3, 2.0, 7.0]))
def test_distances_scale_with_the_unit(pair: tuple, surface: str, factor: float) -> None:
    a, b, spacing = pair
    before = evaluate(a, b, spacing, surface=surface, tolerance=1.0)
    after = evaluate(a, b, tuple(factor * size for size in spacing), surface=surface, tolerance=factor)
    for scores in before.values():
        for name, value in scores.items():
            if value is not None and METRICS.build(name).unit == "mm":
                scores[name] = value * factor
    assert_same(before, after)


@settings(max_examples=60, deadline=None)
@given(label_pairs(), SURFACES, st.floats(0, 4), st.floats(0, 4))
def test_nsd_grows_with_the_tolerance(pair: tuple, surface: str, first: float, second: float) -> None:
    a, b, spacing = pair
    low, high = (evaluate(a, b, spacing, surface=surface, tolerance=t)[1]["nsd"] for t in sorted((first, second)))
    assume(low is not None)
    assert low <= high + 1e-12


@settings(max_examples=60, deadline=None)
@given(label_pairs(), SURFACES)
def test_values_lie_between_worst_and_best(pair: tuple, surface: str) -> None:
    a, b, spacing = pair
    diagonal = np.linalg.norm(np.multiply(a.shape, spacing))
    for scores in evaluate(a, b, spacing, surface=surface).values():
        for name, value in scores.items():
            if value is not None:
                top = 1 if METRICS.build(name).unit == "" else diagonal + 1e-9
                assert 0 <= value <= top
        if scores["hausdorff_distance"] is not None:
            assert scores["hausdorff_distance_95"] <= scores["hausdorff_distance"] + 1e-9
            assert scores["assd"] <= scores["hausdorff_distance"] + 1e-9
