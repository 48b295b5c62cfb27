"""Overlap, volume, boundary and calibration metrics against hand-computed numbers; rules for empty masks; pooling."""

import numpy as np
import pytest

from medseg.errors import BadGeometry, BadLabels, UsageError
from medseg.evaluation import evaluate_arrays
from medseg.evaluation.aggregate import pool
from medseg.evaluation.arrays import build_metrics
from medseg.evaluation.case import CaseResult
from medseg.evaluation.folders import CaseFiles


def score(prediction, reference, *metrics, spacing=None, **settings):
    spacing = spacing or (1.0,) * np.ndim(prediction)
    return evaluate_arrays(
        np.asarray(prediction), np.asarray(reference), spacing=spacing, labels=[1], metrics=metrics, **settings
    )[1]


def test_overlap_of_ten_pixels():
    reference = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    prediction = np.array([[0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])  # tp 2, fp 2, fn 1, tn 5
    scores = score(prediction, reference, "specificity", "accuracy", "volumetric_similarity")
    assert scores == pytest.approx({"specificity": 5 / 7, "accuracy": 0.7, "volumetric_similarity": 1 - 1 / 7})


def test_volume_errors_are_in_millilitres_and_defined_for_missed_structures():
    reference, nothing = np.ones((10, 10, 10), np.uint8), np.zeros((10, 10, 10), np.uint8)
    names = ("volume_error_ml", "absolute_volume_error_ml")
    assert score(nothing, reference, *names, spacing=(2, 1, 1)) == {names[0]: -2.0, names[1]: 2.0}
    assert score(nothing, nothing, *names) == {names[0]: 0.0, names[1]: 0.0}


def test_any_percentile_of_the_hausdorff_distance():
    reference, prediction = np.zeros((1, 40)), np.zeros((1, 40))
    reference[0, :20], prediction[0, :30] = 1, 1
    scores = score(prediction, reference, "hausdorff_distance", "hausdorff_distance_50", "hausdorff_distance_99.5")
    assert scores["hausdorff_distance"] == pytest.approx(10, abs=0.6)
    assert scores["hausdorff_distance_50"] <= scores["hausdorff_distance_99.5"] <= scores["hausdorff_distance"]
    for wrong in ("hausdorff_distance_0", "hausdorff_distance_101"):
        with pytest.raises(UsageError, match="percentile"):
            build_metrics([wrong])


def test_masd_is_the_mean_of_both_directions_and_assd_of_all_points():
    reference, prediction = np.zeros((30, 30)), np.zeros((30, 30))
    reference[5:8, 5:8], prediction[5:25, 5:25] = 1, 1
    scores = score(prediction, reference, "masd", "assd", surface="voxel")
    assert scores["masd"] < scores["assd"]  # most points are the prediction's, which are far away
    moved = np.roll(reference, 2, axis=0)
    assert score(moved, reference, "masd", surface="voxel")["masd"] == pytest.approx(
        score(moved, reference, "assd", surface="voxel")["assd"]
    )


def test_boundary_iou_sees_what_iou_of_large_structures_does_not():
    reference, prediction = np.zeros((100, 100)), np.zeros((100, 100))
    reference[10:90, 10:90], prediction[12:92, 10:90] = 1, 1
    scores = score(prediction, reference, "boundary_iou", "iou")
    assert scores["iou"] == pytest.approx(78 / 82)
    # 2 % of the diagonal is 2.83: two layers. Each rim has 4 * 2 * 78 pixels; the long sides share all but the ends.
    rims = [np.zeros((100, 100), bool) for _ in range(2)]
    for rim, start in zip(rims, (10, 12), strict=True):
        rim[start : start + 80, 10:90] = True
        rim[start + 2 : start + 78, 12:88] = False
    assert scores["boundary_iou"] == pytest.approx((rims[0] & rims[1]).sum() / (rims[0] | rims[1]).sum())
    assert score(reference, reference, "boundary_iou")["boundary_iou"] == 1


@pytest.mark.parametrize(
    ("empty", "expected"),
    [
        (None, [None, 0.0, 0.0]),
        ({"both_empty": "best"}, [1.0, 0.0, 0.0]),
        ({"only_prediction": "undefined"}, [None, None, 0.0]),
        ({"dice": {"both_empty": "best", "only_reference": "undefined"}}, [1.0, 0.0, None]),
    ],
)
def test_the_rule_for_empty_masks_can_be_chosen(empty, expected):
    one, none = np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint8)
    pairs = [(none, none), (one, none), (none, one)]
    assert [score(*pair, "dice", empty=empty)["dice"] for pair in pairs] == expected


@pytest.mark.parametrize(
    ("empty", "message"),
    [({"both": "best"}, "both_empty"), ({"both_empty": "good"}, "'good'"), ({"dise": {"both_empty": "best"}}, "dice")],
)
def test_rules_are_checked(empty, message):
    with pytest.raises(UsageError, match=message):
        build_metrics(["dice"], empty)


def test_calibration_by_hand():
    reference = np.array([[1, 1, 0, 0]])
    probability = np.array([[0.9, 0.6, 0.62, 0.1]], np.float32)
    scores = score(reference, reference, "ece", "brier", probabilities={1: probability})
    assert scores["brier"] == pytest.approx((0.01 + 0.16 + 0.3844 + 0.01) / 4, abs=1e-6)
    # 15 bins: 0.6 and 0.62 share one (share 0.5, mean 0.61), the others are alone
    assert scores["ece"] == pytest.approx((abs(1 - 0.9) + 2 * abs(0.5 - 0.61) + 0.1) / 4, abs=1e-6)


def test_calibration_against_the_formula():
    rng = np.random.default_rng(0)
    probability, reference = rng.random((20, 20)), rng.integers(0, 2, (20, 20))
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (probability >= low) & (probability < low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(reference[inside].mean() - probability[inside].mean())
    assert score(reference, reference, "ece", probabilities={1: probability})["ece"] == pytest.approx(expected)


def test_channels_of_a_network_serve_as_probabilities_and_ignored_voxels_do_not_count():
    reference = np.array([[1, 2, 0, 9]])
    channels = np.array([[[0, 0, 1, 1]], [[1, 0, 0, 0]], [[0, 1, 0, 0]]], np.float32)
    scores = evaluate_arrays(
        np.where(reference == 9, 0, reference),
        reference,
        spacing=(1, 1),
        labels={"a": 1, "both": [1, 2], "b": 2},
        metrics=["brier"],
        ignore_label=9,
        probabilities=channels,
    )
    assert scores == {"a": {"brier": 0.0}, "both": {"brier": 0.0}, "b": {"brier": 0.0}}


def test_bad_probabilities():
    mask = np.ones((2, 2), np.uint8)
    with pytest.raises(UsageError, match="needs probabilities"):
        score(mask, mask, "ece")
    with pytest.raises(BadLabels, match="must be 0 to 1, without NaN"):
        score(mask, mask, "ece", probabilities={1: np.full((2, 2), np.nan)})
    with pytest.raises(BadGeometry, match="have shape"):
        score(mask, mask, "ece", probabilities={1: np.ones((3, 2))})
    with pytest.raises(UsageError, match="none for class '1'"):
        score(mask, mask, "ece", probabilities={2: np.ones((2, 2))})
    with pytest.raises(UsageError, match="3 channels"):
        score(mask, mask, "ece", probabilities=np.ones((3, 2, 2)))


def test_pooled_scores_weigh_voxels_not_cases(tmp_path):
    def result(tp, fp, fn, tn):
        counts = {"tp": tp, "fp": fp, "fn": fn, "tn": tn, "n_pred": tp + fp, "n_ref": tp + fn}
        return CaseResult(CaseFiles("c", tmp_path, tmp_path), {"lesion": {**counts, "dice": None}})

    metrics = build_metrics(["dice", "iou", "precision", "assd"])
    pooled = pool([result(90, 10, 10, 0), result(0, 0, 10, 90)], ["lesion"], metrics)
    assert pooled["lesion"] == pytest.approx({"dice": 180 / 210, "iou": 90 / 120, "precision": 0.9})
    assert pool([result(0, 0, 0, 5)], ["lesion"], metrics)["lesion"] == {"dice": None, "iou": None, "precision": None}
