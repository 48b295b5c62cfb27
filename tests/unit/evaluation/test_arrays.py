"""Closed forms, empty masks, regions, ignored voxels and refusals of `evaluate_arrays`."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import BadGeometry, BadLabels, UsageError
from medseg.evaluation import METRICS, evaluate_arrays

SURFACES = ("voxel", "surfel")
BOUNDARY = ("hausdorff_distance", "hausdorff_distance_95", "assd", "nsd")

OF_LABELS = [name for name in METRICS.names() if name not in ("ece", "brier")]  # these need probabilities


def cube(shape: tuple[int, ...], start: tuple[int, ...], size: int, value: int = 1) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(s, s + size) for s in start)] = value
    return array


def ball(radius: float, shape: tuple[int, ...] = (64, 64, 64)) -> np.ndarray:
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    return (sum((a - size / 2) ** 2 for a, size in zip(axes, shape, strict=True)) < radius**2).astype(np.uint8)


@pytest.mark.parametrize("surface", SURFACES)
def test_shifted_cube_has_the_distances_of_its_shift(surface: str) -> None:
    reference, prediction = cube((20, 20, 20), (4, 4, 4), 8), cube((20, 20, 20), (6, 4, 4), 8)
    scores = evaluate_arrays(
        prediction, reference, spacing=(1.5, 1, 1), labels=[1], metrics=("dice", "iou", *BOUNDARY), tolerance=3.0,
        surface=surface,
    )[1]  # fmt: skip
    assert scores["dice"] == pytest.approx(6 / 8)
    assert scores["iou"] == pytest.approx(6 / 10)
    assert scores["hausdorff_distance"] == pytest.approx(3.0)
    assert scores["hausdorff_distance_95"] == pytest.approx(3.0)
    assert scores["nsd"] == 1.0


@pytest.mark.parametrize("surface", SURFACES)
def test_nested_balls_are_as_far_apart_as_their_radii(surface: str) -> None:
    scores = evaluate_arrays(
        ball(12), ball(20), spacing=(1, 1, 1), labels=[1], metrics=BOUNDARY, tolerance=6.0, surface=surface
    )[1]
    assert scores["assd"] == pytest.approx(8, abs=0.6)  # cells lie half a voxel on either side
    assert scores["hausdorff_distance_95"] == pytest.approx(8, abs=0.7)
    assert scores["nsd"] == 0.0


def test_counts_volumes_precision_and_recall_are_exact() -> None:
    rng = np.random.default_rng(0)
    reference, prediction = rng.integers(0, 5, (2, 11, 12, 13))
    names = (
        "tp",
        "fp",
        "fn",
        "tn",
        "n_pred",
        "n_ref",
        "precision",
        "recall",
        "volume_ml",
        "reference_volume_ml",
        "dice",
    )
    scores = evaluate_arrays(prediction, reference, spacing=(2, 1, 0.5), labels=[0, 1, 2, 3, 4], metrics=names)
    for label in range(5):
        p, r = prediction == label, reference == label
        tp, fp, fn = int((p & r).sum()), int((p & ~r).sum()), int((~p & r).sum())
        assert [scores[label][name] for name in ("tp", "fp", "fn", "tn")] == [tp, fp, fn, int((~p & ~r).sum())]
        assert scores[label]["precision"] == tp / (tp + fp)
        assert scores[label]["recall"] == tp / (tp + fn)
        assert scores[label]["dice"] == 2 * tp / (2 * tp + fp + fn)
        assert scores[label]["volume_ml"] == pytest.approx(p.sum() / 1000)
        assert scores[label]["reference_volume_ml"] == pytest.approx(r.sum() / 1000)


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("side", ["missed", "invented"])
def test_class_in_one_map_only_has_the_worst_value(side: str, surface: str) -> None:
    full, empty = cube((6, 8, 10), (1, 1, 1), 3), np.zeros((6, 8, 10), np.uint8)
    pair = (empty, full) if side == "missed" else (full, empty)
    names = ("dice", "iou", "precision", "recall", *BOUNDARY)
    scores = evaluate_arrays(*pair, spacing=(1, 2, 0.5), labels=[1], metrics=names, surface=surface)[1]
    diagonal = np.sqrt(6**2 + 16**2 + 5**2)
    for name in ("dice", "iou", "precision", "recall", "nsd"):
        assert scores[name] == 0
    for name in ("hausdorff_distance", "hausdorff_distance_95", "assd"):
        assert scores[name] == pytest.approx(diagonal)


def test_class_in_neither_map_is_undefined_but_its_volume_is_zero() -> None:
    empty = np.zeros((5, 5), np.uint8)
    scores = evaluate_arrays(empty, empty, spacing=(1, 1), labels=[7], metrics=OF_LABELS)[7]
    for name, value in scores.items():
        assert value == (None if METRICS.build(name).worst is not None else 25 if name == "tn" else 0)


def test_keys_follow_the_labels_and_regions_join_classes() -> None:
    reference = cube((9, 9, 9), (1, 1, 1), 6) + cube((9, 9, 9), (2, 2, 2), 3)
    prediction = np.where(reference == 2, 1, reference)
    labels = {"background": 0, "whole": (1, 2), "core": 2}
    scores = evaluate_arrays(prediction, reference, spacing=(1, 1, 1), labels=labels, metrics=("dice", "nsd"))
    assert list(scores) == ["whole", "core"]
    assert scores["whole"] == {"dice": 1.0, "nsd": 1.0}
    assert scores["core"]["dice"] == 0.0


def test_ignored_voxels_are_in_no_count_and_no_boundary() -> None:
    reference, prediction = cube((12, 12), (2, 2), 4), cube((12, 12), (2, 2), 4)
    reference[8:], prediction[8:] = 9, 1
    names = ("dice", "hausdorff_distance", "tn")
    scores = evaluate_arrays(prediction, reference, spacing=(1, 1), labels=[1], metrics=names, ignore_label=9)[1]
    assert scores == {"dice": 1.0, "hausdorff_distance": 0.0, "tn": 8 * 12 - 16}


def test_tolerance_is_per_class() -> None:
    reference = cube((20, 20, 20), (2, 2, 2), 5) + cube((20, 20, 20), (12, 12, 12), 5, 2)
    prediction = np.roll(reference, 1, 0)
    scores = evaluate_arrays(
        prediction, reference, spacing=(2, 2, 2), labels=[1, 2], metrics=["nsd"], tolerance={1: 2.0, 2: 1.0}
    )
    assert scores[1]["nsd"] == 1.0
    assert 0 < scores[2]["nsd"] < 1


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.7, 1.1])
@pytest.mark.parametrize("surface", SURFACES)
def test_distance_equal_to_the_tolerance_is_within_it(factor: float, surface: str) -> None:
    reference, prediction = cube((16, 16, 16), (3, 3, 3), 6), cube((16, 16, 16), (6, 3, 3), 6)
    scores = evaluate_arrays(
        prediction, reference, spacing=(factor,) * 3, labels=[1], metrics=["nsd"], tolerance=3 * factor, surface=surface
    )
    assert scores[1]["nsd"] == 1.0


@pytest.mark.parametrize("values", [(0, 1, 300), (0, 1001, 70000, 2_000_000_000)])
def test_large_label_values(values: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    reference, prediction = np.array(values)[rng.integers(0, len(values), (2, 8, 8, 8))]
    scores = evaluate_arrays(prediction, reference, spacing=(1, 1, 1), labels=values[1:], metrics=("tp", "dice"))
    for value in values[1:]:
        assert scores[value]["tp"] == int(((prediction == value) & (reference == value)).sum())


def test_bool_and_whole_floats_are_labels() -> None:
    mask = cube((6, 6), (1, 1), 3).astype(bool)
    assert evaluate_arrays(mask, mask.astype(np.float32), spacing=(1, 1), labels=[1], metrics=["dice"])[1]["dice"] == 1


def test_transposed_arrays_need_not_be_contiguous() -> None:
    reference, prediction = cube((9, 10, 11), (1, 2, 3), 5), cube((9, 10, 11), (2, 2, 3), 5)
    plain = evaluate_arrays(prediction, reference, spacing=(1, 2, 3), labels=[1], metrics=OF_LABELS)[1]
    turned = evaluate_arrays(prediction.T, reference.T, spacing=(3, 2, 1), labels=[1], metrics=OF_LABELS)[1]
    assert turned == pytest.approx(plain)


ONE = np.ones((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("error", "prediction", "arguments", "says"),
    [
        (BadGeometry, np.ones((4, 5), np.uint8), {}, "(4, 5)"),
        (BadGeometry, ONE, {"spacing": (1, 0)}, "spacing is (1.0, 0.0)"),
        (BadGeometry, ONE, {"spacing": (1, 1, 1)}, "expected 2 numbers"),
        (BadLabels, np.full((4, 4), 0.5), {}, "not integers"),
        (BadLabels, np.full((4, 4), np.nan), {}, "not integers"),
        (BadLabels, np.full((4, 4), -1), {}, "label -1"),
        (UsageError, ONE, {"metrics": ["dicee"]}, "did you mean 'dice'"),
        (UsageError, ONE, {"surface": "surfle"}, "did you mean 'surfel'"),
        (UsageError, ONE, {"tolerance": -1}, "must be >= 0"),
        (UsageError, ONE, {"tolerance": {2: 1.0}}, "none for class '1'"),
        (UsageError, ONE, {"labels": []}, "no class"),
        (UsageError, ONE, {"labels": ["liver"]}, "must be an integer"),
    ],
)
def test_refusals_name_the_value(error: type, prediction: np.ndarray, arguments: dict, says: str) -> None:
    with pytest.raises(error) as refused:
        evaluate_arrays(prediction, ONE, **{"spacing": (1, 1), "labels": [1], **arguments})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_instance_maps_are_refused() -> None:
    many = np.arange(64**2).reshape(64, 64)
    with pytest.raises(BadLabels, match="not instances"):
        evaluate_arrays(many, many, spacing=(1, 1), labels=[1])


def test_every_metric_says_what_a_report_must_tell() -> None:
    keys = [METRICS.build(name).key for name in METRICS.names()]
    assert len(set(keys)) == len(keys)
    for name in METRICS.names():
        metric = METRICS.build(name)
        assert metric.definition.endswith(".")
        assert metric.unit in ("", "mm", "ml", "voxels")
        assert metric.worst is None or metric.best is not None
