"""Operations on label maps by hand, and what validation data makes of them."""

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.inference.postprocess import choose_postprocessing, common_operations, postprocess

SPACING = (1.0, 1.0, 2.0)
LABELS = {"background": 0, "organ": 1, "lesion": 5}


def organ(*crumbs):
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[4:14, 4:14, 4:14] = 1
    for crumb in crumbs:
        labels[crumb] = 1
    return labels


CRUMB = (slice(17, 19), slice(0, 2), slice(0, 2))


def test_the_largest_component_stays():
    labels = postprocess(organ(CRUMB), [{"operation": "largest_component", "label": 1}], SPACING)
    assert np.array_equal(labels, organ())
    assert labels.dtype == np.uint8


def test_small_components_go_by_their_volume():
    crumbs = organ(CRUMB)  # 8 voxels of 2 mm3: 0.016 ml
    for ml, expected in ((0.015, crumbs), (0.017, organ())):
        assert np.array_equal(
            postprocess(crumbs, [{"operation": "minimum_size", "label": 1, "ml": ml}], SPACING), expected
        )


def test_holes_are_filled_but_not_over_another_class():
    labels = organ()
    labels[8, 8, 8], labels[10, 10, 10] = 0, 5
    filled = postprocess(labels, [{"operation": "fill_holes", "label": 1}], SPACING)
    assert filled[8, 8, 8] == 1
    assert filled[10, 10, 10] == 5
    assert labels[8, 8, 8] == 0  # the input stays


def test_other_classes_and_two_dimensions():
    image = np.zeros((12, 12), np.int16)
    image[1:6, 1:6], image[8, 8], image[10, 10] = 7, 7, 300
    found = postprocess(image, [{"operation": "largest_component", "label": 7}], (1, 1))
    assert found.dtype == np.int16
    assert (found == 7).sum() == 25
    assert found[10, 10] == 300
    assert postprocess(image, [{"operation": "largest_component", "label": 9}], (1, 1)).sum() == image.sum()


def test_what_helps_is_chosen_and_what_hurts_is_not():
    reference = organ()
    cases = [(organ(CRUMB), reference, SPACING)] * 5
    chosen = choose_postprocessing(cases, LABELS)
    assert [(o["operation"], o["label"]) for o in chosen] == [("largest_component", 1)]
    assert 0 < chosen[0]["gain"] < 0.01
    both = organ((slice(16, 20), slice(0, 8), slice(0, 8)))  # the second piece is real
    assert choose_postprocessing([(both, both, SPACING)] * 5, LABELS) == []
    assert choose_postprocessing([*cases[:3], (both, both, SPACING)], LABELS)[0]["operation"] == "minimum_size"
    assert choose_postprocessing([], LABELS) == []


def test_ensembles_apply_what_all_members_chose():
    first = [{"operation": "largest_component", "label": 1, "gain": 0.01}, {"operation": "fill_holes", "label": 1}]
    second = [{"operation": "largest_component", "label": 1, "gain": 0.02}]
    assert common_operations([first, second]) == [{"operation": "largest_component", "label": 1}]
    assert len(common_operations([first])) == 2


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ({"operation": "largest_componet", "label": 1}, "largest_component"),
        ({"operation": "minimum_size", "label": 1}, "no number 'ml'"),
        ({"operation": "fill_holes"}, "no number 'label'"),
    ],
)
def test_operations_are_checked(operation, message):
    with pytest.raises(UsageError, match=message):
        postprocess(organ(), [operation], SPACING)


def test_the_predictor_applies_what_the_model_stores(threshold_predictor):
    from dataclasses import replace

    from medseg.inference import Predictor
    from medseg.io import Geometry, Volume

    member = replace(
        threshold_predictor().members[0], postprocessing=({"operation": "largest_component", "label": 1, "gain": 0.1},)
    )
    case = Volume(organ(CRUMB)[None].astype(np.float32), Geometry((20, 20, 20), np.eye(4)))
    assert np.array_equal(Predictor([member]).predict(case).labels, organ())
    assert np.array_equal(Predictor([member], postprocess=False).predict(case).labels, organ(CRUMB))


def test_opening_is_scipys_also_at_the_border():
    from scipy import ndimage

    labels = (np.random.default_rng(0).random((40, 50)) > 0.15).astype(np.uint8)
    labels[:20, :18] = 1
    opened = postprocess(labels, [{"operation": "opening", "label": 1, "size": 6}], (1, 1))
    expected = ndimage.binary_opening(labels, np.ones((6, 6)))
    np.testing.assert_array_equal(opened, expected)
    assert 0 < expected.sum() < labels.sum()
    with pytest.raises(UsageError, match="no number 'size'"):
        postprocess(labels, [{"operation": "opening", "label": 1}], (1, 1))
