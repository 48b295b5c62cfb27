"""Things instead of voxels: hand-made lesions, panoptica on the same input, the BraTS 2023 rules."""

import tracemalloc

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.evaluation import evaluate_arrays
from medseg.evaluation.components import label_components, match_components
from medseg.evaluation.lesions import find_lesions

NAMES = ["lesion_precision", "lesion_recall", "lesion_f1", "segmentation_quality", "panoptic_quality"]


def score(prediction, reference, *metrics, spacing=(1, 1, 1)):
    return evaluate_arrays(prediction, reference, spacing=spacing, labels=[1], metrics=metrics)[1]


def boxes(*corners, shape=(40, 20, 20)):
    mask = np.zeros(shape, np.uint8)
    for start, stop in corners:
        mask[start:stop, 5:15, 5:15] = 1
    return mask


def test_one_found_one_missed_one_invented():
    reference, prediction = boxes((0, 8), (15, 20)), boxes((2, 8), (30, 35))
    scores = score(prediction, reference, *NAMES)
    assert scores == pytest.approx(
        {
            "lesion_precision": 0.5,
            "lesion_recall": 0.5,
            "lesion_f1": 0.5,
            "segmentation_quality": 0.75,
            "panoptic_quality": 0.75 / 2,
        }
    )


def test_the_threshold_stands_in_the_name():
    reference, prediction = boxes((0, 10)), boxes((0, 3))
    assert score(prediction, reference, "lesion_f1")["lesion_f1"] == 0
    assert score(prediction, reference, "lesion_f1_30")["lesion_f1_30"] == 1
    with pytest.raises(UsageError, match="IoU of Lesion_F1 is 0 %"):
        score(prediction, reference, "lesion_f1_0")


def test_pairs_are_one_to_one_and_as_many_as_can_be():
    iou = match_components(*(mask.astype(bool) for mask in (boxes((0, 4), (6, 12)), boxes((0, 10))))).matched(0.1)
    assert len(iou) == 1
    # The first true box overlaps both predicted ones, the second only the larger: both are paired all the same.
    reference, prediction = boxes((0, 12), (14, 20)), boxes((0, 5), (7, 20))
    assert len(match_components(prediction.astype(bool), reference.astype(bool)).matched(0.1)) == 2


def test_agrees_with_panoptica():
    panoptica = pytest.importorskip("panoptica")
    rng = np.random.default_rng(0)
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(rng.normal(size=(40, 40, 40)), 2)
    reference = (smooth > 0.06).astype(np.uint8)
    prediction = (ndimage.shift(smooth, (1, 0, 0)) > 0.065).astype(np.uint8)
    theirs = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.NaiveThresholdMatching(),
    ).evaluate(prediction, reference, verbose=False)["ungrouped"]
    ours = score(prediction, reference, *NAMES)
    assert ours["panoptic_quality"] == pytest.approx(theirs.pq, abs=1e-6)
    assert ours["segmentation_quality"] == pytest.approx(theirs.sq, abs=1e-6)
    assert ours["lesion_f1"] == pytest.approx(theirs.rq, abs=1e-6)


def test_brats_lesions_by_hand():
    reference = boxes((0, 5), (20, 25))  # two lesions of 500 mm3
    prediction = boxes((0, 5), (34, 36))  # the first found, the second missed, one invented
    scores = score(prediction, reference, "lesionwise_dice", "lesionwise_hd95")
    assert scores["lesionwise_dice"] == pytest.approx(1 / 3)
    assert scores["lesionwise_hd95"] == pytest.approx((0 + 374 + 374) / 3)


def test_crumbs_within_reach_belong_to_the_lesion_and_small_lesions_are_left_out():
    reference = boxes((0, 5), (8, 9))
    lesions, invented = find_lesions(reference.astype(bool), reference.astype(bool), (1, 1, 1))
    assert (len(lesions), invented) == (1, 0)
    assert lesions[0].dice == 1
    speck = np.zeros((30, 30, 30), np.uint8)
    speck[5, 5, 5], speck[20:25, 20:25, 20:25] = 1, 1
    lesions, invented = find_lesions(speck > 0, speck > 0, (1, 1, 1))
    assert (len(lesions), invented) == (1, 0)
    only = np.zeros((9, 9, 9), np.uint8)
    only[4, 4, 4] = 1
    assert score(only, only, "lesionwise_dice", "lesionwise_hd95") == {"lesionwise_dice": 1.0, "lesionwise_hd95": 0.0}


def test_a_prediction_that_bridges_two_lesions_counts_for_both():
    reference, prediction = boxes((0, 5), (20, 25)), boxes((0, 25))
    lesions, invented = find_lesions(prediction.astype(bool), reference.astype(bool), (1, 1, 1))
    assert invented == 0
    assert [lesion.dice for lesion in lesions] == pytest.approx([2 * 5 / 30] * 2)


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.3, 0.5, 0.8])
def test_sparse_pairs_are_those_of_the_dense_assignment(threshold):
    from scipy.optimize import linear_sum_assignment

    for seed in range(30):
        rng = np.random.default_rng(seed)
        masks = [rng.random((14, 14)) < share for share in rng.uniform(0.2, 0.5, 2)]
        ours, theirs = (label_components(mask) for mask in masks)
        iou = np.array(
            [
                [
                    ((theirs == r) & (ours == p)).sum() / ((theirs == r) | (ours == p)).sum()
                    for p in range(1, ours.max() + 1)
                ]
                for r in range(1, theirs.max() + 1)
            ]
        )
        allowed = iou >= threshold
        pairs = linear_sum_assignment(np.where(allowed, iou + min(iou.shape), 0), maximize=True)
        dense = iou[pairs][allowed[pairs]]
        found = match_components(*masks).matched(threshold)
        assert len(found) == len(dense)
        assert found.sum() == pytest.approx(dense.sum())


def nuclei(rows):
    mask = np.zeros((13 * rows, 13 * rows), bool)
    for i, j in np.ndindex(7, 7):
        mask[i + 2 :: 13, j + 2 :: 13] = True
    return mask


def test_memory_grows_with_the_things_not_with_their_pairs():
    reference = nuclei(60)  # 3,600 things: a dense table of their pairs takes 100 MB
    prediction = np.roll(reference, 1, 0)
    tracemalloc.start()
    scores = score(prediction, reference, *NAMES, "lesionwise_dice", spacing=(1, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores["lesion_f1"] == 1
    assert scores["segmentation_quality"] == pytest.approx(42 / 56)
    assert peak < 40 * reference.size
    chain = np.zeros((4 * 500, 3), bool)  # every thing overlaps two others, so that one long chain is assigned
    chain[0::4, 1] = chain[1::4, 1] = chain[2::4, 1] = True
    assert len(match_components(np.roll(chain, 2, 0), chain).matched(0.01)) == 500


def test_a_lesion_of_any_place_is_compared_with_what_touches_it_and_with_nothing_else():
    """The shared dilation against the definition: each lesion dilated alone."""
    from scipy import ndimage

    for seed in range(20):
        rng = np.random.default_rng(seed)
        prediction, reference = (ndimage.gaussian_filter(rng.normal(size=(20, 20, 12)), 1) > 0.4 for _ in range(2))
        reference[:, 8:13], prediction[7:12] = False, False
        lesions, invented = find_lesions(prediction, reference, (2, 2, 2))
        around = ndimage.generate_binary_structure(3, 2)
        padded = [np.pad(mask, 4) for mask in (prediction, reference)]
        found, groups = label_components(padded[0]), label_components(ndimage.binary_dilation(padded[1], around, 3))
        touched, dice = set(), []
        for number in range(1, groups.max() + 1):
            lesion = padded[1] & (groups == number)
            partners = set(np.unique(found[ndimage.binary_dilation(lesion, around, 3)]).tolist()) - {0}
            touched |= partners
            union = np.isin(found, list(partners))
            if lesion.sum() * 8 > 50:
                dice.append(2 * (lesion & union).sum() / (lesion.sum() + union.sum()))
        assert [lesion.dice for lesion in lesions] == pytest.approx(dice)
        assert invented == found.max() - len(touched)
        for lesion in lesions:
            ours, true = lesion.masks()
            assert (int(ours.sum()), int(true.sum()), int((ours & true).sum())) == (
                lesion.predicted,
                lesion.size,
                lesion.shared,
            )


@pytest.mark.parametrize("connectivity", [4, 8, 6, 26])
def test_components_are_those_of_scipy_on_every_small_grid(connectivity):
    """cc3d alone is wrong on 2D bool arrays of odd width, and fails on some that are one voxel thick."""
    from scipy import ndimage

    dims, widest = (2, 12) if connectivity in (4, 8) else (3, 5)
    around = ndimage.generate_binary_structure(dims, dims if connectivity in (8, 26) else 1)
    for shape in np.ndindex((widest,) * dims):
        rng = np.random.default_rng(shape)
        mask = rng.random(np.add(shape, 1)) < rng.uniform(0.2, 0.7)
        ours, theirs = label_components(mask, connectivity), ndimage.label(mask, around)[0]
        pairs = set(zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True)) - {(0, 0)}
        assert len(pairs) == ours.max() == theirs.max(), mask
