"""Reports of pictures: lengths in pixels, images in their colours."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from medseg.evaluation import CaseFiles, Evaluator
from medseg.evaluation.overlay import draw_overlays, scores_line
from medseg.evaluation.report import Report
from medseg.evaluation.views import choose_views


def evaluate(folder: Path, ending: str) -> Report:
    labels = np.zeros((24, 32), np.uint8)
    labels[4:14, 5:20] = 1
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    for name, array in (("image", image), ("reference", labels), ("prediction", np.roll(labels, 3, 1))):
        if ending == ".png":
            Image.fromarray(array).save(folder / f"{name}.png")
        else:
            grey = array.reshape(24, 32, -1)[..., :1]
            nibabel.save(nibabel.Nifti1Image(grey, np.eye(4)), folder / f"{name}.nii.gz")
    files = (folder / f"{name}{ending}" for name in ("reference", "prediction", "image"))
    return Evaluator({"lesion": 1}, progress=False).evaluate([CaseFiles("a", *files)])


def test_lengths_of_pictures_are_pixels(tmp_path: Path) -> None:
    report = evaluate(tmp_path, ".png")
    assert report.heading("hausdorff_distance_95") == "HD95 (px)"
    assert report.heading("dice") == "Dice"
    assert report.heading("reference_volume_ml") == "Reference_volume_ml (1000 px)"
    assert "HD95 (px)" in [column.header for column in report.table().columns]
    assert " px" in scores_line(report, choose_views(report)[0])
    report.save(tmp_path / "report")
    assert "HD95 (mm)" not in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_lengths_of_volumes_are_millimetres(tmp_path: Path) -> None:
    assert evaluate(tmp_path, ".nii.gz").heading("hausdorff_distance_95") == "HD95 (mm)"


def test_colours_are_shown(tmp_path: Path) -> None:
    report = evaluate(tmp_path, ".png")
    shown = choose_views(report)
    assert shown[0].view.image.shape == (24, 32, 3)
    assert draw_overlays(report, shown).startswith(b"\x89PNG")


def test_a_prediction_of_the_whole_picture_has_its_line_at_the_border(tmp_path: Path) -> None:
    coloured = []
    for value in (0, 1):
        report = evaluate(tmp_path, ".png")
        Image.fromarray(np.full((24, 32), value, np.uint8)).save(tmp_path / "prediction.png")
        picture = draw_overlays(report, choose_views(report))
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
        legend = np.array([86, 180, 233])  # the colour of the class
        coloured.append((np.abs(pixels - legend).max(-1) < 8).sum())
    assert coloured[1] > coloured[0] + 400  # along four sides
