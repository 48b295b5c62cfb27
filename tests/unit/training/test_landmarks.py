"""HybridGNet from files to scores through the commands: two organs as ellipses, with landmarks and from masks alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medseg.compose import compose
from medseg.data.check import check_command
from medseg.errors import BadDataset, BadLabels, UsageError
from medseg.evaluate_model import evaluate_command
from medseg.inference import Predictor
from medseg.inference.export import export_command
from medseg.inference.predict import predict_folder
from medseg.targets import build_target
from medseg.targets.contours import Structure, paint
from medseg.training import fit

ORGANS = (Structure("right", 0, 8, 1), Structure("left", 8, 6, 2))


def write_organs(root: Path, cases: int = 6) -> Path:
    """Images of 48x64 with two ellipses; dataset.json names their labels, landmarks.json their points."""
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr", "landmarks"):
        (root / folder).mkdir(parents=True)
    for number in range(cases):
        rings = []
        for organ, x in zip(ORGANS, (18, 46), strict=True):
            angle = 2 * np.pi * np.arange(organ.count) / organ.count
            centre = np.array([x, 24]) + rng.uniform(-3, 3, 2)
            rings.append(centre + rng.uniform(8, 11, 2) * np.stack([np.sin(angle), -np.cos(angle)], axis=1))
        points = np.concatenate(rings).astype(np.float32)
        labels = paint(points, ORGANS, (48, 64)).astype(np.uint8)
        image = (80 * labels + rng.integers(10, 60, labels.shape)).astype(np.uint8)
        Image.fromarray(image).save(root / "imagesTr" / f"case{number}_0000.png")
        Image.fromarray(labels).save(root / "labelsTr" / f"case{number}.png")
        np.save(root / "landmarks" / f"case{number}.npy", points)
    labels_of = {"background": 0, "right": 1, "left": 2}
    description = {"channel_names": {"0": "xray"}, "labels": labels_of, "numTraining": cases, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(description))
    (root / "landmarks.json").write_text(json.dumps({"structures": {"right": 8, "left": 6}}))
    return root


def config(data: Path, run: Path, *words: str) -> dict:
    small = ["model=hybridgnet", "target=landmarks", "model.base_channels=4", "plan.patch_size=[64,64]"]
    quick = ["trainer.max_epochs=1", "trainer.steps_per_epoch=4", "trainer.progress=false", "trainer.tensorboard=false"]
    where = [f"data={data}", f"run_dir={run}", f"cache_dir={run.parent / 'cache'}"]
    alone = ["data.workers=0", "data.loader_workers=0", "data.folds=3", "plan.batch_size=4", "trainer.precision=fp32"]
    return compose("train", [*where, *small, *quick, *alone, *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("landmarks")
    data = write_organs(folder / "organs")
    return data, fit(config(data, folder / "run", "augmentation=landmarks"))


def test_training_writes_masks_landmarks_and_their_scores(trained: tuple[Path, Path]) -> None:
    _, run = trained
    description = json.loads((run / "model.json").read_text())
    assert description["model"]["structures"] == [8, 6]
    assert description["model"]["image_size"] == [64, 64]
    assert description["plan"]["mirror_axes"] == []
    scores = json.loads((run / "validation" / "landmark_scores.json").read_text())
    assert scores["cases"] == 2
    assert set(scores["mean"]) == {"all", "right", "left"}
    assert description["metrics"]["landmarks"] == scores["mean"]["all"]
    assert "Dice" in description["metrics"]


def test_commands_take_it_as_any_other_model(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = trained
    assert check_command(compose("check", [f"data={data}", "workers=0"])) == 0
    out = tmp_path / "out"
    predict_folder(compose("predict", [f"model={run}", f"input={data / 'imagesTr'}", f"output={out}"]))
    points = np.load(out / "case0.npy")
    labels = np.asarray(Image.open(out / "case0.png"))
    assert (points.shape, points.dtype, labels.shape) == ((14, 2), np.float32, (48, 64))
    np.testing.assert_array_equal(labels, paint(points, ORGANS, (48, 64)))
    assert json.loads((out / "landmarks.json").read_text())["structures"] == {"right": 8, "left": 6}
    report = tmp_path / "report"
    words = [f"predictions={out}", f"references={data}", f"output={report}", "metrics=[dice,implausible]"]
    assert evaluate_command(compose("evaluate", words)) == 0
    rows = (report / "landmarks.csv").read_text().splitlines()
    assert len(rows) == 1 + 6 * 3
    assert rows[0].startswith("case,structure,n,n_missing,mse,")
    mean = json.loads((report / "summary.json").read_text())["foreground_mean"]
    assert mean["Implausible"] == 0 or mean["Dice"] == 0

    (out / "case0.npy").unlink()
    (out / "case1.npy").unlink()
    (out / "case1.png").unlink()
    assert evaluate_command(compose("evaluate", words)) == 6
    scores = json.loads((report / "landmark_scores.json").read_text())
    assert (scores["cases"], scores["mean"]["all"]["n_missing"]) == (6, pytest.approx(2 * 14 / 6))
    assert [row.split(",")[2:4] for row in (report / "landmarks.csv").read_text().splitlines()[1:7:3]] == [
        ["14", "14"]
    ] * 2


class Fixed(torch.nn.Module):
    """Answers with points in the middle of the patch."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.full((len(image), 14, 2), 0.5)


class Organs(torch.nn.Module):
    """Answers with the given points of an image of 48x64, in the middle of a patch of 64x64."""

    def __init__(self, points: np.ndarray) -> None:
        super().__init__()
        self.points = torch.from_numpy((points + np.array([0, 8])) / 64).float()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.points.expand(len(image), -1, -1)


def test_points_lie_where_the_mask_is_painted_whatever_the_spacing_of_the_network(trained: tuple[Path, Path]) -> None:
    """A network that answers with fixed points: they come back in the pixels of the file through padding."""
    data, run = trained
    predictor = Predictor.from_pretrained(run, device="cpu", precision="fp32")

    object.__setattr__(predictor.members[0], "network", Fixed())
    found = predictor.predict(data / "imagesTr" / "case0_0000.png")
    np.testing.assert_allclose(found.landmarks, np.tile([32.0, 24.0], (14, 1)), atol=1e-5)


def test_points_follow_images_that_are_resized(tmp_path: Path) -> None:
    """Files of 48x64 become 64x96: rows grow by 4/3 and columns by 3/2, and points come back from there."""
    data = write_organs(tmp_path / "organs")
    run = fit(config(data, tmp_path / "run", "plan.size=[64,96]", "plan.patch_size=[64,96]"))
    (prepared,) = (tmp_path / "cache" / "organs").glob("*/case0/*/points.npy")
    np.testing.assert_allclose(np.load(prepared), np.load(data / "landmarks" / "case0.npy") * (1.5, 4 / 3), rtol=1e-5)
    predictor = Predictor.from_pretrained(run, device="cpu", precision="fp32")
    object.__setattr__(predictor.members[0], "network", Fixed())
    found = predictor.predict(data / "imagesTr" / "case0_0000.png")
    np.testing.assert_allclose(found.landmarks, np.tile([32.0, 24.0], (14, 1)), atol=1e-5)


def test_an_ensemble_is_the_mean_of_the_points(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = trained
    image = data / "imagesTr" / "case1_0000.png"
    one = Predictor.from_pretrained(run, precision="fp32").predict(image).landmarks
    two = Predictor.from_pretrained([run, run], precision="fp32", tta=True).predict(image).landmarks
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_an_ensemble_of_other_structures_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = trained
    one = Predictor.from_pretrained(run, precision="fp32").members[0]
    other = replace(one, target=build_target({**one.target.to_dict(), "structures": {"right": 6, "left": 8}}))
    with pytest.raises(UsageError, match="must predict the same labels in the same way"):
        Predictor([one, other])


def test_nothing_is_painted_outside_of_a_mask(trained: tuple[Path, Path]) -> None:
    data, run = trained
    predictor = Predictor.from_pretrained(run, precision="fp32", postprocess=False)
    object.__setattr__(predictor.members[0], "network", Organs(np.load(data / "landmarks" / "case0.npy")))
    image, mask = data / "imagesTr" / "case0_0000.png", np.zeros((48, 64), np.uint8)
    whole = predictor.predict(image)
    mask[:, :20] = 1
    cut = predictor.predict(image, mask=mask)
    np.testing.assert_array_equal(cut.labels, whole.labels * mask)
    assert cut.labels.any()
    assert (cut.labels != whole.labels).any()
    np.testing.assert_array_equal(cut.landmarks, whole.landmarks)


def test_onnx_finds_the_same_points(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    data, run = trained
    export_command(compose("export", [f"model={run}", f"output={tmp_path / 'onnx'}"]))
    image = data / "imagesTr" / "case1_0000.png"
    expected = Predictor.from_pretrained(run, precision="fp32").predict(image).landmarks
    found = Predictor.from_pretrained(tmp_path / "onnx").predict(image).landmarks
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_what_points_cannot_give_is_refused(trained: tuple[Path, Path]) -> None:
    data, run = trained
    with pytest.raises(UsageError, match="no uncertainty map"):
        Predictor.from_pretrained(run, uncertainty="entropy")
    with pytest.raises(UsageError, match="no probabilities"):
        Predictor.from_pretrained(run).predict(data / "imagesTr" / "case0_0000.png", probabilities=True)
    with pytest.raises(UsageError, match="sees a whole image in 64x64"):
        Predictor.from_pretrained(run).predict(np.zeros((80, 64), np.float32), spacing=(1, 1))


def test_masks_alone_are_enough(tmp_path: Path) -> None:
    data = write_organs(tmp_path / "organs")
    for file in (data / "landmarks").iterdir():
        file.unlink()
    run = fit(config(data, tmp_path / "run", "target.from_masks=true", "augmentation=landmarks"))
    assert not (run / "validation" / "landmark_scores.json").exists()
    assert np.load(next((run / "validation").glob("case*.npy"))).shape == (14, 2)


def test_landmarks_without_masks_are_trained_predicted_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "masks"))
    data = write_organs(tmp_path / "organs")
    shutil.rmtree(data / "labelsTr")
    (data / "dataset.json").unlink()
    (data / "imagesTr").rename(data / "images")
    run = fit(config(data, tmp_path / "run"))
    scores = json.loads((run / "validation" / "landmark_scores.json").read_text())
    assert (scores["cases"], set(scores["mean"])) == (2, {"all", "right", "left"})
    out = tmp_path / "out"
    predict_folder(compose("predict", [f"model={run}", f"input={data}", f"output={out}"]))
    assert len(list(out.glob("*.npy"))) == 6
    words = [f"predictions={out}", f"references={data}", f"output={tmp_path / 'report'}"]
    assert evaluate_command(compose("evaluate", words)) == 0
    assert json.loads((tmp_path / "report/landmark_scores.json").read_text())["cases"] == 6
    np.save(data / "landmarks" / "case0.npy", np.full((14, 2), np.nan))
    with pytest.raises(BadLabels, match="case0"):  # no empty mask is painted and scored
        evaluate_command(compose("evaluate", words))


def test_masks_on_sides_have_landmark_scores(tmp_path: Path) -> None:
    data = write_organs(tmp_path / "organs")
    for part, kind in (("images", "imagesTr"), ("masks", "labelsTr")):
        for n in range(6):
            side = data / part / ("val" if n > 3 else "train")
            side.mkdir(parents=True, exist_ok=True)
            suffix = "_0000" if kind == "imagesTr" else ""
            (data / kind / f"case{n}{suffix}.png").rename(side / f"case{n}.png")
        (data / kind).rmdir()
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "right": 1, "left": 2}}))
    run = fit(config(data, tmp_path / "run"))
    first = json.loads((run / "validation" / "landmark_scores.json").read_text())
    assert first["cases"] == 2
    output = tmp_path / "report"
    words = [f"predictions={run / 'validation'}", f"references={data / 'masks' / 'val'}", f"output={output}"]
    assert evaluate_command(compose("evaluate", [*words, "pixel_size=0.5"])) == 0
    again = json.loads((output / "landmark_scores.json").read_text())
    for name, scores in again["mean"].items():
        assert scores["mean_radial_error_px"] == first["mean"][name]["mean_radial_error_px"]
        assert scores["mean_radial_error"] == pytest.approx(scores["mean_radial_error_px"] / 2)
    distances = [json.loads((folder / "summary.json").read_text()) for folder in (run / "validation", output)]
    whole, half = (found["foreground_mean"]["HD95"] for found in distances)
    assert half == pytest.approx(whole / 2)


def test_structures_that_no_mask_has_apart_are_refused(tmp_path: Path) -> None:
    data = write_organs(tmp_path / "organs")
    pieces = "target.structures={left: 6, right: 8, lowest: 4}"
    words = ["target.from_masks=true", pieces, "target.values={left: 2, lowest: 2}"]
    with pytest.raises(BadDataset, match="no training mask has a piece of its own for left, lowest, so") as caught:
        fit(config(data, tmp_path / "run", *words))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run" / "logs").exists()


def test_a_target_without_structures_is_refused(tmp_path: Path) -> None:
    data = write_organs(tmp_path / "organs")
    (data / "landmarks.json").unlink()
    with pytest.raises(UsageError, match="needs the number of points of each structure"):
        fit(config(data, tmp_path / "run"))


def test_it_learns(tmp_path: Path) -> None:
    data = write_organs(tmp_path / "organs", cases=8)
    words = ["trainer.steps_per_epoch=150", "augmentation=none", "optimizer.schedule=constant", "trainer.ema=0.9"]
    run = fit(config(data, tmp_path / "run", *words))
    scores = json.loads((run / "validation" / "landmark_scores.json").read_text())["mean"]["all"]
    assert scores["mean_radial_error_px"] < 11  # untrained points are 30 to 60 pixels away


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=unet"], "model unet gives voxels, and target landmarks learns points"),
        (["target=exclusive"], "model hybridgnet gives points, and target exclusive learns voxels"),
    ],
)
def test_a_model_of_something_else_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    data = write_organs(tmp_path / "organs")
    with pytest.raises(UsageError, match=f"{message}.*use model=hybridgnet with target=landmarks"):
        fit(config(data, tmp_path / "run", *words))
    assert not (tmp_path / "cache").exists(), "refused before any case is read"


def test_points_in_volumes_are_refused(tiny_phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="target landmarks is for 2D images, and the dataset is 3D"):
        fit(config(tiny_phantoms, tmp_path / "run", "target.structures={liver: 4}", "target.values={liver: 1}"))


def test_flips_are_refused_even_where_the_plan_mirrors_nothing(tmp_path: Path) -> None:
    data = write_organs(tmp_path / "organs")
    words = ["augmentation=flips", "target.from_masks=true", "plan.mirror_axes=[]"]
    with pytest.raises(UsageError, match="HorizontalFlip would mirror the images, and target landmarks is never"):
        fit(config(data, tmp_path / "run", *words))


def test_a_validation_image_larger_than_the_patch_is_refused_before_the_first_step(tmp_path: Path) -> None:
    data = write_organs(tmp_path / "organs")
    Image.fromarray(np.zeros((48, 100), np.uint8)).save(data / "imagesTr/case5_0000.png")
    Image.fromarray(np.eye(48, 100, dtype=np.uint8)).save(data / "labelsTr/case5.png")
    ids = [f"case{n}" for n in range(6)]
    (data / "splits_final.json").write_text(json.dumps([{"train": ids[:4], "val": ids[4:]}]))
    with pytest.raises(UsageError, match="case5: the image has 48x100 pixels"):
        fit(config(data, tmp_path / "run"))
    assert not (tmp_path / "run" / "logs").exists()
