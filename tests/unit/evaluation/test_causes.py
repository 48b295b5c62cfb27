"""Every cause, on masks that were made to have it."""

import tracemalloc

import numpy as np
import pytest

from medseg.evaluation.causes import RULES, likely_causes
from medseg.evaluation.views import sides_of

SHAPE = (40, 40, 40)


def box(*ranges, value=1, onto=None):
    labels = np.zeros(SHAPE, np.uint8) if onto is None else onto.copy()
    labels[tuple(slice(*part) for part in ranges)] = value
    return labels


REFERENCE = box((4, 16), (6, 18), (10, 22))
EMPTY = np.zeros(SHAPE, np.uint8)


@pytest.mark.parametrize(
    ("prediction", "reference", "cause"),
    [
        (REFERENCE, REFERENCE, "good"),
        (EMPTY, REFERENCE, "missed"),
        (REFERENCE, EMPTY, "invented"),
        (np.flip(REFERENCE, 0), REFERENCE, "geometry (mirrored left-right)"),
        (np.flip(REFERENCE, (0, 1)), REFERENCE, "geometry (mirrored left-right and back-front)"),
        (np.moveaxis(REFERENCE, 0, 2), REFERENCE, "geometry (axes in another order)"),
        (np.flip(REFERENCE[:, 6], 0), REFERENCE[:, 6], "geometry (mirrored top-bottom)"),
        (np.roll(REFERENCE, (4, 3), (1, 2)), REFERENCE, "shifted"),
        (box((4, 19), (6, 21), (10, 24)), REFERENCE, "over-segmented"),
        (box((4, 16), (6, 18), (10, 17)), REFERENCE, "under-segmented"),
        (box((4, 16), (5, 19), (12, 20)), REFERENCE, "boundary"),
        (box((13, 16), (6, 18), (10, 22), onto=box((4, 10), (6, 18), (10, 22))), REFERENCE, "split"),
    ],
)
def test_causes(prediction, reference, cause):
    assert likely_causes(prediction, reference, {"organ": (1,)}) == {"organ": cause}
    assert cause.split(" (")[0] in RULES


def test_sides_that_changed_places():
    reference = box((4, 12), (10, 30), (10, 20), onto=box((28, 36), (10, 30), (14, 30), value=2))
    prediction = np.where(reference == 1, 2, np.where(reference == 2, 1, 0))
    classes = {"kidney_right": (1,), "kidney_left": (2,), "liver": (3,)}
    sides = sides_of(classes)
    assert sides == {"kidney_right": "kidney_left", "kidney_left": "kidney_right"}
    found = likely_causes(prediction, reference, classes, sides)
    assert found == {"kidney_right": "side swapped", "kidney_left": "side swapped"}


def test_one_side_missed_and_the_other_far_off_are_no_swap():
    reference, prediction = box((4, 12), (10, 30), (10, 20)), box((28, 36), (30, 38), (30, 38), value=2)
    classes = {"kidney_right": (1,), "kidney_left": (2,)}
    found = likely_causes(prediction, reference, classes, sides_of(classes))
    assert found == {"kidney_right": "missed", "kidney_left": "invented"}


def test_what_leaves_the_image_is_no_overlap():
    long, short = box((0, 40), (6, 18), (10, 22)), box((0, 8), (6, 18), (10, 22))
    assert likely_causes(long, short, {"organ": (1,)}) == {"organ": "over-segmented"}


def test_a_hundred_classes_need_no_mask_of_the_whole_image_each():
    labels = np.zeros((120, 120, 120), np.uint8)
    corners = [(i, j, k) for i in range(5) for j in range(5) for k in range(4)]
    for value, (i, j, k) in enumerate(corners, 1):
        labels[2 + 22 * i : 18 + 22 * i, 2 + 22 * j : 18 + 22 * j, 2 + 28 * k : 18 + 28 * k] = value
    classes = {f"c{value}": (value,) for value in range(1, 101)}
    tracemalloc.start()
    found = likely_causes(np.roll(labels, 6, 0), labels, classes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(found.values()) == {"shifted"}
    assert peak < 40 * labels.nbytes
