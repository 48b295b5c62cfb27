"""Betti numbers of shapes that everybody knows, and centreline Dice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg.errors import InputRefused
from medseg.evaluation import METRICS, evaluate_arrays
from medseg.evaluation.arrays import score_class
from medseg.evaluation.components import label_components
from medseg.evaluation.metrics import Metric
from medseg.evaluation.pair import LabelPair
from medseg.evaluation.topology import betti_numbers, euler_characteristic, skeleton


def ball(size=15, radius=5.0):
    axes = np.ogrid[tuple(slice(size) for _ in range(3))]
    return sum((axis - size // 2) ** 2 for axis in axes) <= radius**2


def torus(size=25, ring=7.0, tube=2.5):
    x, y, z = np.ogrid[tuple(slice(size) for _ in range(3))]
    middle = size // 2
    return (np.sqrt((x - middle) ** 2 + (y - middle) ** 2) - ring) ** 2 + (z - middle) ** 2 <= tube**2


def shell():
    return ball() & ~ball(radius=2.0)


def two_touching_corners():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (ball(), (1, 0, 0)),
        (torus(), (1, 1, 0)),
        (shell(), (1, 0, 1)),
        (two_touching_corners(), (1, 0, 0)),
        (np.ones((1, 1, 1), bool), (1, 0, 0)),
        (np.concatenate([torus(), torus()]), (2, 2, 0)),
    ],
)
def test_betti_numbers_in_3d(mask, expected):
    assert betti_numbers(mask) == expected
    assert euler_characteristic(mask) == expected[0] - expected[1] + expected[2]


def test_betti_numbers_in_2d():
    ring = np.ones((7, 7), bool)
    ring[3, 3] = False
    assert betti_numbers(ring) == (1, 1, 0)
    assert euler_characteristic(ring) == 0
    assert betti_numbers(np.eye(5, dtype=bool)) == (1, 0, 0)


def test_errors_are_differences_also_of_missed_structures():
    names = ["betti_0_error", "betti_1_error", "betti_2_error"]
    nothing = np.zeros(torus().shape, bool)
    for prediction, expected in ((torus(), [0, 0, 0]), (nothing, [1, 1, 0]), (ball(25), [0, 1, 0])):
        scores = evaluate_arrays(prediction, torus(), spacing=(1, 1, 1), labels=[1], metrics=names)[1]
        assert list(scores.values()) == expected
    assert evaluate_arrays(nothing, nothing, spacing=(1, 1, 1), labels=[1], metrics=names)[1][names[0]] == 0


def test_centreline_dice_does_not_mind_width_but_gaps():
    vessel, thin = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    vessel[17:22, 2:38], thin[18:21, 2:38] = 1, 1
    gap = vessel.copy()
    gap[:, 12:28] = 0
    scores = [
        evaluate_arrays(prediction, vessel, spacing=(1, 1), labels=[1], metrics=["cldice", "dice"])[1]
        for prediction in (vessel, thin, gap)
    ]
    assert scores[0]["cldice"] == 1
    assert scores[1]["cldice"] > 0.95 > scores[1]["dice"]
    assert scores[2]["cldice"] < 0.75


def test_a_skeleton_is_thin_and_never_empty():
    assert skeleton(np.ones((1, 1), bool)).sum() == 1
    assert 0 < skeleton(ball()).sum() < 5


def test_implausible_counts_pieces_and_holes_that_the_reference_has_not() -> None:
    reference = np.zeros((20, 20), np.uint8)
    reference[4:16, 4:16] = 1
    hole, speck, smaller = reference.copy(), reference.copy(), reference.copy()
    hole[8, 8], speck[18, 18], smaller[4:6] = 0, 1, 0
    for prediction, expected in ((hole, 1.0), (speck, 1.0), (smaller, 0.0), (reference, 0.0)):
        scores = evaluate_arrays(prediction, reference, spacing=(1, 1), labels=[1], metrics=["implausible"])
        assert scores[1]["implausible"] == expected
    scores = evaluate_arrays(reference, hole, spacing=(1, 1), labels=[1], metrics=["implausible"])
    assert scores[1]["implausible"] == 0, "a hole of the reference need not be found"


SHAPES = [
    (2, 2, 2),
    (2, 2, 9),
    (2, 2, 40),
    (2, 9, 9),
    (4, 4, 4),
    (4, 4, 40),
    (6, 6, 6),
    (1, 2, 9),
    (2, 2),
    (4, 20),
    (6, 6),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_of_even_thickness_have_a_skeleton(shape):
    assert skeleton(np.ones(shape, bool)).any()
    size = tuple(2 * (length + 3) for length in shape)
    reference = np.zeros(size, np.uint8)
    first, second = (
        tuple(slice(start, start + n) for n, start in zip(shape, at, strict=True))
        for at in ([1] * len(shape), [n + 4 for n in shape])
    )
    reference[first] = reference[second] = 1
    missed = reference.copy()
    missed[second] = 0
    assert skeleton(np.ones((2, 2, 40), bool)).sum() > 30, "a vessel keeps its length"
    for prediction, other, perfect in (
        (reference, reference, True),
        (missed, reference, False),
        (reference, missed, False),
    ):
        value = evaluate_arrays(prediction, other, spacing=(1,) * len(shape), labels=[1], metrics=["cldice"])[1][
            "cldice"
        ]
        assert (value == 1) if perfect else (0 < value < 1)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=8)))
def test_every_piece_of_a_mask_has_a_part_of_its_skeleton(mask):
    thin, pieces = skeleton(mask), label_components(mask)
    assert not (thin & ~mask).any()
    assert set(np.unique(pieces[thin])) == set(range(1, int(pieces.max()) + 1))
    if mask.any():
        spacing = (1,) * mask.ndim
        assert evaluate_arrays(mask, mask, spacing=spacing, labels=[1], metrics=["cldice"])[1]["cldice"] == 1
        missed = mask & (pieces != 1)
        if missed.any():
            assert evaluate_arrays(missed, mask, spacing=spacing, labels=[1], metrics=["cldice"])[1]["cldice"] < 1


@settings(max_examples=25, deadline=None)
@given(
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6).flatmap(
        lambda shape: st.tuples(*(hnp.arrays(bool, shape) for _ in range(2)))
    )
)
def test_no_metric_gives_nan(pair):
    names = [name for name in METRICS.names() if name not in ("ece", "brier")]
    scores = evaluate_arrays(*pair, spacing=(1,) * pair[0].ndim, labels=[1], metrics=names)[1]
    assert all(value is None or np.isfinite(value) for value in scores.values())


def test_a_metric_that_gives_nan_is_refused_by_name():
    class Broken(Metric):
        key, definition = "Broken", "nothing"

        def __call__(self, pair):
            return float("nan")

    one = LabelPair(np.ones((2, 2), int), np.ones((2, 2), int), spacing=(1, 1)).of((1,), tolerance=1, surface="voxel")
    with pytest.raises(InputRefused, match=r"metric 'broken' is nan \(must be a number\)"):
        score_class(one, {"broken": Broken()})
