"""Every cause, on masks that were made to have it."""

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
        (np.flip(REFERENCE, 0), REFERENCE, "geometry (mirrored along axis 0)"),
        (np.flip(REFERENCE, (0, 1)), REFERENCE, "geometry (mirrored along axis 0 and 1)"),
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
