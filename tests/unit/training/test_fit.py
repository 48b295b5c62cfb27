"""fit on tiny phantoms: what a run leaves, exact resume after SIGKILL and SIGTERM, two processes, refusals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.compose import compose
from medseg.errors import InputRefused, UsageError
from medseg.inference import Predictor
from medseg.io import load_model, read_json
from medseg.training import fit

SMALL = [
    "plan.patch_size=[16,16,16]", "plan.strides=[[1,1,1],[2,2,2]]", "plan.batch_size=2", "model.base_channels=4",
    "trainer.max_epochs=2", "trainer.steps_per_epoch=5", "trainer.progress=false", "augmentation=light",
    "trainer.threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def words(tiny_phantoms, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return [f"data={tiny_phantoms}", f"cache_dir={cache}", *SMALL]


def command(words, run, *more):
    return [sys.executable, "-m", "medseg.cli", "train", *words, f"run_dir={run}", *more]


def weights(run):
    return (Path(run) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(words, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "unbroken"
    return fit(compose("train", [*words, f"run_dir={run}", "model.dropout=0.2"]))


def test_a_run_leaves_all_that_it_should(unbroken):
    for name in ("model.json", "plan.json", "splits_final.json", "config.json", "progress.png"):
        assert (unbroken / name).is_file()
    for name in ("summary.json", "cases.csv", "report.html", "overlay.png"):
        assert (unbroken / "validation" / name).is_file()
    assert list((unbroken / "tensorboard").glob("events*"))
    _, description = load_model(unbroken)
    assert description["training"]["steps"] == 10
    assert (
        description["metrics"]["Dice"] == read_json(unbroken / "validation" / "summary.json")["foreground_mean"]["Dice"]
    )


def test_the_run_folder_is_a_model_folder(unbroken, tiny_phantoms):
    image = next((tiny_phantoms / "imagesTs").iterdir())
    segmentation = Predictor.from_pretrained(unbroken).predict(image, probabilities=True)
    assert segmentation.labels.shape == segmentation.geometry.shape
    assert segmentation.probabilities.shape == (6, *segmentation.labels.shape)
    assert set(segmentation.seconds) == {"read", "preprocess", "network", "restore", "postprocess"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_after_a_kill_is_bit_exact(words, tmp_path, accumulate, unbroken):
    more = ["model.dropout=0.2", f"trainer.accumulate={accumulate}", "data.loader_workers=0"]
    reference = unbroken if accumulate == 1 else fit(compose("train", [*words, f"run_dir={tmp_path / 'whole'}", *more]))
    run = tmp_path / "killed"
    process = subprocess.Popen(command(words, run, *more, "trainer.checkpoint_minutes=0.00001"))
    wait_for(run / "checkpoints" / "previous.ckpt", process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    fit(compose("train", [*words, f"run_dir={run}", *more, "resume=true"]))
    assert weights(run) == weights(reference)


def test_sigterm_saves_exits_143_and_resumes_exactly(words, tmp_path, unbroken):
    run = tmp_path / "stopped"
    more = ["model.dropout=0.2", "trainer.checkpoint_minutes=0.00001"]
    process = subprocess.Popen(command(words, run, *more), stderr=subprocess.PIPE, text=True)
    wait_for(run / "checkpoints" / "last.ckpt", process)
    process.terminate()
    _, error = process.communicate()
    if process.returncode == 0:
        pytest.skip("training ended before the signal came")
    assert process.returncode == 143
    assert "resume=true" in error.strip().splitlines()[-1]
    fit(compose("train", [*words, f"run_dir={run}", *more, "resume=true"]))
    assert weights(run) == weights(unbroken)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, "training ended early"
        time.sleep(0.01)


def test_workers_do_not_change_the_result(words, tmp_path, unbroken):
    run = fit(compose("train", [*words, f"run_dir={tmp_path / 'w'}", "model.dropout=0.2", "data.loader_workers=2"]))
    assert weights(run) == weights(unbroken)


def test_two_processes_train_one_model(words, tmp_path):
    run = tmp_path / "two"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    more = ["trainer.devices=2", "data.loader_workers=0", "trainer.max_epochs=1"]
    kept = [word for word in words if not word.startswith("trainer.max_epochs")]
    done = subprocess.run(command(kept, run, *more), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, description = load_model(run)
    assert description["training"]["steps"] == 5
    assert len(list(run.parent.iterdir())) == 1  # one run folder, not one per process


def test_all_folds_become_an_ensemble(words, tmp_path, tiny_phantoms):
    more = ["fold=all", "data.folds=2", "trainer.max_epochs=1", "trainer.tensorboard=false"]
    run = fit(compose("train", [*words, f"run_dir={tmp_path / 'cv'}", *more]))
    assert {"fold_0", "fold_1"} <= set(read_json(run / "crossval.json")["folds"])
    predictor = Predictor.from_pretrained(run, tta=True)
    assert len(predictor.members) == 2
    image = next((tiny_phantoms / "imagesTs").iterdir())
    assert predictor.predict(image).labels.max() <= 5


def test_unetpp_trains_with_all_heads(words, tmp_path):
    kept = [word for word in words if not word.startswith("model.")]
    run = fit(compose("train", [*kept, f"run_dir={tmp_path / 'pp'}", "model=unetpp_nnunet", "model.base_channels=4"]))
    assert (run / "model.json").is_file()


def test_refusals_before_anything_is_trained(words, tmp_path, unbroken):
    with pytest.raises(UsageError, match="resume=true"):
        fit(compose("train", [*words, f"run_dir={unbroken}"]))
    with pytest.raises(UsageError, match="fold is 7"):
        fit(compose("train", [*words, f"run_dir={tmp_path / 'a'}", "fold=7"]))


def test_a_loss_that_is_nan_stops_with_the_cases(words, tiny_phantoms, tmp_path):
    """Intensities that a float32 holds, but not their sums."""
    data = tmp_path / "huge"
    shutil.copytree(tiny_phantoms, data)
    for path in (data / "imagesTr").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(3e38 * np.sign(image.get_fdata(dtype=np.float32)), image.affine), path)
    huge = [f"data={data}", *words[1:], f"run_dir={tmp_path / 'nan'}", "plan.normalization=none"]
    with pytest.raises(InputRefused, match=r"loss is nan at step \d+, batch of cases \w+"):
        fit(compose("train", huge))


def test_loss_goes_down(words, tmp_path):
    import pandas as pd

    more = ["trainer.max_epochs=6", "trainer.steps_per_epoch=20", "trainer.tensorboard=false"]
    run = fit(compose("train", [*words, f"run_dir={tmp_path / 'long'}", *more]))
    loss = pd.read_csv(next(run.glob("logs/*/metrics.csv")))["train/loss"].dropna()
    assert loss.iloc[-1] < 0.8 * loss.iloc[0]
