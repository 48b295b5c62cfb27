"""Betti numbers of shapes that everybody knows, and centreline Dice."""

import numpy as np
import pytest

from medseg.evaluation import evaluate_arrays
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
