"""Operations on label maps by hand, and what validation data makes of them."""

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.inference.postprocess import common_operations, postprocess
from medseg.inference.postprocess_choice import choose_postprocessing

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


def names(choice):
    return [(operation["operation"], operation["label"]) for operation in choice.operations]


def test_what_helps_is_chosen_and_what_hurts_is_not():
    reference = organ()
    cases = [(organ(CRUMB), reference, SPACING)] * 5
    choice = choose_postprocessing(cases, LABELS)
    assert names(choice) == [("largest_component", 1)]
    assert 0 < choice.operations[0]["gain"] < 0.01
    assert choice.dice["organ"]["before"] == pytest.approx(2000 / 2008)
    assert choice.dice["organ"]["after"] == choice.dice["foreground_mean"]["after"] == 1
    assert "lesion" not in choice.dice
    both = organ((slice(16, 20), slice(0, 8), slice(0, 8)))  # the second piece is real
    assert choose_postprocessing([(both, both, SPACING)] * 5, LABELS).operations == []
    assert names(choose_postprocessing([*cases[:3], (both, both, SPACING)], LABELS)) == [("minimum_size", 1)]
    assert choose_postprocessing([], LABELS).operations == []


def test_the_size_of_what_goes_is_chosen_from_a_grid():
    reference = organ((slice(16, 20), slice(0, 8), slice(0, 8)))  # 2.512 ml, 0.512 of them a true second piece
    crumbs = reference.copy()
    crumbs[17:20, 12:17, 0:5] = 1  # 0.15 ml
    choice = choose_postprocessing([(crumbs, reference, SPACING)] * 3, LABELS)
    (operation,) = choice.operations
    assert (operation["operation"], operation["ml"]) == ("minimum_size", 0.2)  # 0.1 keeps the crumb, 0.6 no piece
    assert choice.dice["organ"]["after"] == 1


def test_the_best_operation_goes_first_and_the_next_on_top():
    prediction = organ(CRUMB)
    prediction[6:12, 6:12, 6:12] = 0  # the hole costs more than the crumb
    choice = choose_postprocessing([(prediction, organ(), SPACING)] * 4, LABELS)
    assert names(choice) == [("fill_holes", 1), ("largest_component", 1)]
    gains = [operation["gain"] for operation in choice.operations]
    assert gains[0] > gains[1] > 0
    assert sum(gains) == pytest.approx(choice.dice["organ"]["after"] - choice.dice["organ"]["before"], abs=1e-3)


def test_each_class_has_its_own_and_the_mean_does_not_fall():
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(6):
        reference = organ()
        reference[6:8, 6:8, 6:8], reference[15:18, 15:18, 4:9] = 5, 5
        prediction = reference.copy()
        prediction[rng.random(reference.shape) < 0.01] = 1
        prediction[rng.random(reference.shape) < 0.002] = 5
        prediction[rng.random(reference.shape) < 0.005] = 0
        cases.append((prediction, reference, SPACING))
    choice = choose_postprocessing(cases, LABELS)
    assert {operation["label"] for operation in choice.operations} == {1, 5}
    for mean in choice.dice.values():
        assert mean["after"] >= mean["before"]
    kept = {o["operation"] for o in choice.operations if o["label"] == 5}
    assert "largest_component" not in kept  # the lesion has two pieces


def test_a_class_that_loses_by_what_is_done_to_another_loses_its_operations():
    """Filled holes help class 5 while an island of class 1 plugs its true hole; but that island goes first."""
    reference = np.zeros((24, 24, 24), np.uint8)
    reference[:, :, :4] = 1
    reference[8:20, 8:20, 8:20] = 5
    reference[10:18, 10:18, 10:18] = 0
    prediction = reference.copy()
    prediction[10:18, 10:18, 10:18] = 1
    prediction[9, 9, 9:12] = 0  # a hole in the wall
    cases = [(prediction, reference, SPACING)] * 3
    choice = choose_postprocessing(cases, LABELS)
    assert names(choice) == [("largest_component", 1)]
    assert choice.dice["lesion"]["after"] == choice.dice["lesion"]["before"]
    reference[10:18, 10:18, 10:18] = 1  # the island is true: now both keep what they have
    assert names(choose_postprocessing(cases, LABELS)) == [("fill_holes", 5)]


def test_ensembles_apply_what_all_members_chose():
    first = [{"operation": "largest_component", "label": 1, "gain": 0.01}, {"operation": "fill_holes", "label": 1}]
    second = [{"operation": "largest_component", "label": 1, "gain": 0.02}]
    assert common_operations([first, second]) == [{"operation": "largest_component", "label": 1}]
    assert len(common_operations([first])) == 2
    sizes = [[{"operation": "minimum_size", "label": 1, "ml": ml, "gain": 0.01}] for ml in (0.5, 0.2)]
    assert common_operations(sizes) == [{"operation": "minimum_size", "label": 1, "ml": 0.2}]
    assert common_operations([*sizes, first]) == []


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
