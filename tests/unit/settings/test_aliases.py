"""Names of the field are taken for the metrics that they mean."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.compose import compose
from medseg.evaluation import evaluate_arrays
from medseg.settings import settings_of


@pytest.mark.parametrize(("given", "own"), [("hd95", "hausdorff_distance_95"), ("HD95", "hausdorff_distance_95")])
def test_hd95_is_the_hausdorff_distance(given: str, own: str) -> None:
    words = ["predictions=p", "references=r", f"metrics=[dice,{given}]"]
    assert settings_of("evaluate", compose("evaluate", words)).to_config()["metrics"] == ["dice", own]
    assert settings_of("compare", compose("compare", [f"metrics={given}"])).to_config()["metrics"] == [own]
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:6] = 1
    scores = evaluate_arrays(mask, np.roll(mask, 1, 0), labels=[1], metrics=[given, own], spacing=(1.0, 1.0))
    assert scores[1][given] == scores[1][own] == 1.0
