"""Landmark errors by hand, and landmarks that are missing."""

import numpy as np
import pytest

from medseg.errors import BadGeometry, UsageError
from medseg.evaluation import evaluate_landmarks


def test_errors_by_hand():
    reference = np.array([[0.0, 0.0], [10.0, 10.0]])
    prediction = reference + np.array([[3.0, 4.0], [0.0, 1.0]])
    scores = evaluate_landmarks(prediction, reference, spacing=(0.5, 1.0), thresholds=(1, 2))["all"]
    assert scores["mse"] == pytest.approx((9 + 16 + 0 + 1) / 4)
    assert scores["mse_mm2"] == pytest.approx((2.25 + 16 + 0 + 1) / 4)
    radial = [np.hypot(1.5, 4), 1.0]
    assert scores["mean_radial_error"] == pytest.approx(np.mean(radial))
    assert scores["sd_radial_error"] == pytest.approx(np.std(radial, ddof=1))
    assert (scores["success_rate_1mm"], scores["success_rate_2mm"]) == (0.5, 0.5)
    assert (scores["n"], scores["n_missing"]) == (2, 0)


def test_a_missing_landmark_is_a_failure_not_a_case_less():
    reference, prediction = np.zeros((4, 3)), np.zeros((4, 3))
    prediction[0], reference[3] = np.nan, np.nan
    scores = evaluate_landmarks(prediction, reference, spacing=(1, 1, 1))["all"]
    assert (scores["n"], scores["n_missing"]) == (3, 1)
    assert scores["success_rate_2mm"] == pytest.approx(2 / 3)
    assert scores["mean_radial_error"] == 0
    nothing = evaluate_landmarks(np.full((2, 2), np.nan), np.zeros((2, 2)), spacing=(1, 1))["all"]
    assert nothing["mean_radial_error"] is None
    assert nothing["success_rate_2mm"] == 0


def test_structures_are_scored_apart():
    reference = np.zeros((4, 2))
    prediction = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    scores = evaluate_landmarks(prediction, reference, spacing=(1, 1), structures={"lung": [0, 1], "heart": [2, 3]})
    assert scores["lung"]["mean_radial_error"] == 0
    assert scores["heart"]["mean_radial_error"] == 2
    assert scores["all"]["mean_radial_error"] == 1


def test_what_does_not_fit():
    with pytest.raises(BadGeometry, match="do not fit"):
        evaluate_landmarks(np.zeros((2, 2)), np.zeros((3, 2)), spacing=(1, 1))
    with pytest.raises(UsageError, match="outside of 0 to 1"):
        evaluate_landmarks(np.zeros((2, 2)), np.zeros((2, 2)), spacing=(1, 1), structures={"a": [2]})
