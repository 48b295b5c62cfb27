"""`medseg predict` with bad models, inputs and settings: one line on stderr, the exit code of the table, no file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.cli import main
from medseg.io import load_model, read_json, save_model, write_json
from medseg.models import create_model
from medseg.targets import ExclusiveClasses

LABELS = {"background": 0, "organ": 1}
PLAN = {
    "dataset": "d", "spatial_dims": 3, "channel_names": ["T1", "FLAIR"], "labels": LABELS, "ignore_label": None,
    "spacing": [1.0, 1.0, 1.0], "patch_size": [8, 8, 8], "batch_size": 1, "strides": [[1, 1, 1], [2, 2, 2]],
    "normalization": [{"scheme": "none"}] * 2, "crop_nonzero": False, "mirror_axes": [], "mirror_swaps": {},
}  # fmt: skip
MODEL = {"name": "unet", "spatial_dims": 3, "in_channels": 2, "out_channels": 2, "base_channels": 4,
         "strides": PLAN["strides"], "dropout": 0.1}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    target = ExclusiveClasses(labels=LABELS).to_dict()
    save_model(tmp_path / "model", create_model(**MODEL).state_dict(), {"model": MODEL, "target": target, "plan": PLAN})
    return tmp_path / "model"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for channel in range(2):
        image = np.random.default_rng(channel).random((10, 9, 8), np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"case_{channel:04d}.nii.gz")
    return folder


def predict(model: Path, images: Path, *words: str) -> int:
    output = [] if any(word.startswith("output=") for word in words) else [f"output={model.parent / 'out'}"]
    with pytest.raises(SystemExit) as end:
        main(["predict", "device=cpu", "precision=fp32", f"model={model}", f"input={images}", *output, *words])
    return int(end.value.code or 0)


def describe(model: Path, **changes: object) -> None:
    write_json(model / "model.json", {**read_json(model / "model.json"), **changes})


def not_finite(model: Path, images: Path) -> None:
    state, description = load_model(model)
    next(iter(state.values())).view(-1)[-1] = float("nan")
    save_model(model, state, description)


def incomplete(model: Path, images: Path) -> None:
    (model / "model.safetensors").unlink()


def no_model(model: Path, images: Path) -> None:
    shutil.rmtree(model)


def tampered(model: Path, images: Path) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)


def newer(model: Path, images: Path) -> None:
    describe(model, format=99)


def names_code(model: Path, images: Path) -> None:
    describe(model, plan={"_target_": "os.system"})


def pickled(model: Path, images: Path) -> None:
    torch.save({}, model / "model.safetensors")


def truncated(model: Path, images: Path) -> None:
    file = images / "case_0001.nii.gz"
    file.write_bytes(file.read_bytes()[:-30])


def with_nan(model: Path, images: Path) -> None:
    nib.save(nib.Nifti1Image(np.full((10, 9, 8), np.nan, np.float32), np.eye(4)), images / "case_0001.nii.gz")


def one_channel(model: Path, images: Path) -> None:
    (images / "case_0001.nii.gz").unlink()


def three_channels(model: Path, images: Path) -> None:
    shutil.copy(images / "case_0000.nii.gz", images / "case_0002.nii.gz")


def output_is_a_file(model: Path, images: Path) -> None:
    (model.parent / "out").write_text("in the way")


FAULTS: list[tuple[Callable[[Path, Path], None], int, str]] = [
    (not_finite, 3, "NaN or infinite weights: "),
    (incomplete, 3, "lacks model.safetensors"),
    (no_model, 3, "not a model folder"),
    (tampered, 5, "SHA-256"),
    (newer, 2, "newer than this medseg"),
    (names_code, 5, "_target_"),
    (pickled, 5, "SHA-256"),
    (truncated, 3, "case case, "),
    (with_nan, 3, "720 of 720 voxels are NaN or infinite"),
    (one_channel, 3, "3D with 1 channel(s) (expected 3D with 2: T1, FLAIR)"),
    (three_channels, 2, "3 channel files (the model expects 2"),
    (output_is_a_file, 4, "cannot be written"),
]


@pytest.mark.parametrize(("make", "code", "line"), FAULTS, ids=[make.__name__ for make, *_ in FAULTS])
def test_one_line_and_the_code_of_the_table(
    model: Path, images: Path, capsys: pytest.CaptureFixture, make: Callable[[Path, Path], None], code: int, line: str
) -> None:
    make(model, images)
    assert predict(model, images) == code
    shown = capsys.readouterr().err
    assert line in shown
    assert "Traceback" not in shown
    assert len([row for row in shown.splitlines() if row.startswith("medseg: ")]) == 1
    assert not list((model.parent / "out").glob("*.nii.gz"))


@pytest.mark.parametrize(
    ("word", "code", "line"),
    [
        ("tta_scales=[9]", 2, "tta_scales"),
        ("tta_scales=1.5", 2, "tta_scales is 1.5"),
        ("mc_dropout=-1", 2, "mc_dropout is -1"),
        ("window_batch=0", 2, "window_batch is 0"),
        ("max_vram=plenty", 2, "max_vram is 'plenty'"),
        ("uncertainty=mutual_information", 2, "mutual_information needs an ensemble"),
        ("max_ram=1M", 4, "raise max_ram"),
        ("mask=nowhere.nii.gz", 3, "nowhere.nii.gz"),
    ],
)
def test_settings_that_cannot_be(
    model: Path, images: Path, capsys: pytest.CaptureFixture, word: str, code: int, line: str
) -> None:
    assert predict(model, images, word) == code
    assert line in capsys.readouterr().err


def test_every_setting_reaches_the_result(model: Path, images: Path) -> None:
    mask = np.zeros((10, 9, 8), np.uint8)
    mask[:5] = 1
    nib.save(nib.Nifti1Image(mask, np.eye(4)), model.parent / "mask.nii.gz")
    words = ("uncertainty=mutual_information", "mc_dropout=3", "tta_scales=[1.0,1.2]", "skip_empty=true", "max_vram=8G")
    assert predict(model, images, *words, f"mask={model.parent / 'mask.nii.gz'}", "window_batch=2") == 0
    doubt = nib.load(model.parent / "out" / "case_mutual_information.nii.gz").get_fdata()
    assert doubt[:5].max() > 0
    assert doubt[5:].max() == 0
    found = read_json(model.parent / "out" / "predictions.json")["cases"]["case"]["memory"]
    assert found["window_batch"] == 2
    plain = model.parent / "out2"
    assert predict(model, images, f"output={plain}") == 0
    assert found["predicted"] > read_json(plain / "predictions.json")["cases"]["case"]["memory"]["predicted"]


def test_a_model_without_dropout(model: Path, images: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = {**MODEL, "dropout": 0.0}
    description = {"model": arguments, "target": ExclusiveClasses(labels=LABELS).to_dict(), "plan": PLAN}
    save_model(model, create_model(**arguments).state_dict(), description)
    assert predict(model, images, "mc_dropout=4") == 2
    assert "the model has no dropout layer" in capsys.readouterr().err
