"""What the page says of large evaluations, of groups and of ignored voxels."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from medseg.evaluation import Report, evaluate_folders
from medseg.evaluation.figures import MOST_CLASSES, plotted_classes
from medseg.evaluation.page import MOST_GROUPS, by_cause, to_html
from medseg.evaluation.views import choose_views
from medseg.io import Geometry, write_labels

CLASSES = 30
GRID = Geometry((2 * CLASSES, 8, 8), np.eye(4))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Thirty classes, of which the last of the prediction has the smallest share."""
    root = tmp_path_factory.mktemp("many")
    reference = np.repeat(np.arange(1, CLASSES + 1, dtype=np.uint8), 2)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    prediction = reference.copy()
    for value in range(1, CLASSES + 1):
        prediction[2 * value - 2 : 2 * value, : value // 5] = 0
    for folder, labels in (("ref", reference), ("pred", prediction)):
        for case in range(2):
            write_labels(root / folder / f"c{case}.nii.gz", labels, GRID)
    names = {f"class_{value:02d}": value for value in range(1, CLASSES + 1)}
    return evaluate_folders(root / "pred", root / "ref", labels=names, metrics=["dice", "volume_ml"], progress=False)


def test_plots_of_many_classes_hold_the_worst_and_the_page_says_so(report: Report) -> None:
    names = plotted_classes(report)
    assert len(names) == MOST_CLASSES
    assert names[0] == "class_30"
    assert {"class_01", "class_02", "class_03", "class_04"}.isdisjoint(names)
    page = to_html(report, choose_views(report))
    assert f"Shown are the {MOST_CLASSES} of {CLASSES} classes with the worst Dice" in page
    assert page.count("<td>class_01</td>") == 6  # scores, spread, pooled, counted, two cases: no table leaves it out


def test_more_groups_than_the_page_shows(report: Report) -> None:
    one = report.results[0]
    many = tuple(replace(one, files=replace(one.files, id=f"c{case:02d}")) for case in range(MOST_GROUPS + 3))
    grouped = replace(report, results=many, strata={result.files.id: f"site {result.files.id}" for result in many})
    page = to_html(grouped, choose_views(report))
    assert f"The first {MOST_GROUPS} of {MOST_GROUPS + 3} groups" in page
    assert len(re.findall("<h3>site c", page)) == MOST_GROUPS


def test_long_remarks_are_folded_and_complete(report: Report) -> None:
    one = report.results[0]
    lost = [replace(one, files=replace(one.files, id=f"patient_{case:04d}", prediction=None)) for case in range(60)]
    page = to_html(replace(report, results=(one, *lost)), choose_views(report))
    assert "No prediction, counted as worst (60): show all" in page
    assert all(f"patient_{case:04d}" in page for case in range(60))


def test_causes_are_grouped_in_the_order_of_the_rules() -> None:
    found = {"liver": "boundary", "left": "geometry (mirrored left-right)", "spleen": "boundary", "aorta": "good"}
    assert list(by_cause(found).items()) == [
        ("good", ["aorta"]),
        ("geometry (mirrored left-right)", ["left"]),
        ("boundary", ["liver", "spleen"]),
    ]


def test_ignored_voxels_are_no_errors_in_pictures(tmp_path) -> None:
    reference = np.zeros(GRID.shape, np.uint8)
    reference[4:10, 2:6, 2:6], reference[30:] = 1, 9
    prediction = reference.copy()
    prediction[30:] = 1
    write_labels(tmp_path / "ref" / "a.nii.gz", reference, GRID)
    write_labels(tmp_path / "pred" / "a.nii.gz", prediction, GRID)
    report = evaluate_folders(tmp_path / "pred", tmp_path / "ref", labels={"a": 1}, ignore_label=9, progress=False)
    (shown,) = choose_views(report)
    assert np.array_equal(shown.view.reference, shown.view.prediction)
    assert shown.causes == {"a": "good"}
