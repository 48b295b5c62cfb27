"""What may go wrong with a run: other settings or data on a resume, refusals, signals at any moment, no memory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from medseg.cli import main
from medseg.compose import compose
from medseg.errors import BadDataset, Interrupted, MedsegError, ResourceError, UnreadableFile, UsageError
from medseg.io import load_model, read_json, write_json
from medseg.training import fit
from medseg.training.memory import memory_suffices

TINY = [
    "plan.patch_size=[16,16,16]", "plan.strides=[[1,1,1],[2,2,2]]", "plan.batch_size=2", "model.base_channels=4",
    "trainer.steps_per_epoch=2", "trainer.max_epochs=1", "trainer.progress=false", "trainer.tensorboard=false",
    "trainer.threads=1", "data.loader_workers=0", "trainer.precision=fp32",
]  # fmt: skip
STEP = "medseg.training.task.SegmentationTask.training_step"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medseg.data.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("data") / "Dataset901_Runs"
    write_phantoms(folder, cases=5, test_cases=0, shape=(20, 18, 16))
    return folder


@pytest.fixture(scope="module")
def words(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [f"data={data}", f"cache_dir={tmp_path_factory.mktemp('cache')}", *TINY]


@pytest.fixture(scope="module")
def trained(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(words, tmp_path_factory.mktemp("run") / "trained")


def train(words: list[str], run: Path, *more: str) -> Path:
    return fit(compose("train", [*words, f"run_dir={run}", *more]))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(kind: type[MedsegError], said: str, call: Callable[[], object], folder: Path) -> MedsegError:
    """The call is refused in one line and the folder is byte for byte what it was."""
    before = content(folder)
    with pytest.raises(kind, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert content(folder) == before
    return caught.value


# Records --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["data.split_seed=7", "plan.spacing=[2,2,2]"], ["fold=all"], ["model=unetpp"]])
def test_a_finished_run_is_not_touched_without_resume(words: list[str], run: Path, more: list[str]) -> None:
    kept = [word for word in words if not word.startswith("model.")]
    refused(UsageError, "add resume=true", lambda: train(kept, run, *more), run)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["fold=1"], "fold is 1, the run in this folder has 0"),
        (["fold=all"], "fold is all, the run in this folder has 0"),
        (["model.base_channels=8"], "model.base_channels is 8, the run in this folder has 4"),
        (["optimizer=sgd"], "optimizer.name is sgd, the run in this folder has adamw"),
        (["data.split_seed=7"], "data.split_seed is 7, the run in this folder has 12345"),
        (["pretrained=nowhere"], "pretrained is nowhere, the run in this folder has None"),
        (["plan.spacing=[2,2,2]"], r"plan.spacing is \[2.0, 2.0, 2.0\], the run in this folder has None"),
        (["target=nested", "target.levels=[1,2]"], "target.name is nested, the run in this folder has exclusive"),
    ],
)
def test_other_settings_are_refused_on_a_resume(words: list[str], run: Path, more: list[str], said: str) -> None:
    refused(UsageError, said, lambda: train(words, run, "resume=true", "trainer.max_epochs=2", *more), run)


def test_added_cases_are_left_out_and_a_longer_run_is_the_same_run(
    words: list[str], run: Path, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy lies elsewhere with other times, and has more cases: split, plan and settings stay as they were."""
    grown = Path(shutil.copytree(data, tmp_path / data.name, copy_function=shutil.copyfile))
    for n in range(6, 9):
        for name in ("imagesTr", "labelsTr"):
            first = min((grown / name).iterdir())
            shutil.copyfile(first, first.with_name(first.name.replace("_000", f"_00{n}", 1)))
    names = ("config.json", "plan.json", "splits_final.json")
    before = [(run / name).read_bytes() for name in names]
    others = [f"data={grown}", *words[1:]]
    train(others, run, "resume=true", "trainer.max_epochs=2", "trainer.threads=2")
    assert "3 cases came after this run began and are left out" in capsys.readouterr().out
    assert [(run / name).read_bytes() for name in names] == before
    assert load_model(run)[1]["training"]["steps"] == 4
    changed = read_json(run / "run.json")["sessions"][1]["changed"]
    assert changed.keys() == {"data.path", "run_dir", "resume", "trainer.max_epochs", "trainer.threads"}


def test_removed_and_changed_cases_are_refused(words: list[str], run: Path, tmp_path: Path, data: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / data.name))
    image, label = (min((other / name).iterdir()) for name in ("imagesTr", "labelsTr"))

    def is_refused(said: str) -> None:
        refused(BadDataset, said, lambda: train([f"data={other}", *words[1:]], run, "resume=true"), run)

    kept, volume = label.read_bytes(), nib.load(label)
    voxels = np.asanyarray(volume.dataobj).copy()
    voxels[voxels == 1] = 2
    nib.save(nib.Nifti1Image(voxels, volume.affine), label)
    is_refused("the files of phantom_000 are not those that this run began with")
    label.write_bytes(kept)
    description = read_json(other / "dataset.json")
    one, two = (next(name for name, value in description["labels"].items() if value == n) for n in (1, 2))
    write_json(other / "dataset.json", {**description, "labels": {**description["labels"], one: 2, two: 1}})
    is_refused(f"labels.{one} is 2, the run in this folder has 1")
    write_json(other / "dataset.json", description)
    image.unlink()
    label.unlink()
    is_refused("the dataset no longer has phantom_000")


@pytest.mark.parametrize(
    "more",
    [
        ["fold=7"],
        ["optimizer.schedule=zigzag"],
        ["optimizer.name=sdg"],
        ["+optimizer.speed=3"],
        ["trainer.max_time=soon"],
        ["plan.patch_size=[1,16,16]"],
        ["target=landmarks"],
        ["data.limit_train=99"],
        ["trainer.precision=fp7"],
        ["pretrained=nowhere"],
    ],
)
def test_a_new_run_that_is_refused_leaves_no_folder(words: list[str], tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(MedsegError) as caught:
        train(words, tmp_path / "a" / "run", *more)
    assert caught.value.exit_code in (2, 3)
    assert not list(tmp_path.iterdir())


def test_a_dataset_or_a_home_is_no_run_folder(words: list[str], data: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(data, tmp_path / "home"))
    (home / "splits_final.json").write_text("[]")
    for place, more in ((data, []), (data, ["resume=true"]), (data / "labelsTr", [])):
        refused(UsageError, "is an input|lies in 'labelsTr'", partial(train, words, place, *more), data)
    for more in ([], ["resume=true"]):
        refused(UsageError, "holds splits_final.json but no record", partial(train, words, home, *more), home)


def test_folds_are_bound_too(words: list[str], tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, more = tmp_path / "cv", ["fold=all", "data.folds=2"]
    with monkeypatch.context() as patch:
        at_call(patch, STEP, 1, stop)
        with pytest.raises(Interrupted):
            train(words, run, *more)
    assert read_json(run / "run.json")["begun"] == ["fold_0"]
    for changed in ("seed=1", "fold=0"):
        again = partial(train, words, run, "resume=true", *more, changed)
        refused(UsageError, f"{changed.partition('=')[0]} is .*, the run in this folder has", again, run)
    (run / "fold_1" / "checkpoints").mkdir(parents=True)
    shutil.copyfile(trained / "checkpoints" / "last.ckpt", run / "fold_1" / "checkpoints" / "last.ckpt")
    again = partial(train, words, run, "resume=true", *more)
    refused(UnreadableFile, "fold_1/checkpoints/last.ckpt: is no checkpoint of this run", again, run)


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_a_run_without_its_checkpoints_never_starts_anew(words: list[str], run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    error = refused(UnreadableFile, "they are gone", lambda: train(words, run, "resume=true"), run)
    assert error.exit_code == 3


def test_tensors_of_another_network_are_named_in_one_line(words: list[str], run: Path) -> None:
    """As another version of the network would have: the record agrees, the checkpoint does not fit."""
    path = run / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    name = next(name for name, tensor in state["state_dict"].items() if tensor.ndim == 5)
    state["state_dict"][name] = state["state_dict"][name][..., :1]
    torch.save(state, path)
    refused(UnreadableFile, f"does not fit the network: {name} is", lambda: train(words, run, "resume=true"), run)


# Signals --------------------------------------------------------------------------------------------------------------


def at_call(patch: pytest.MonkeyPatch, name: str, number: int, act: Callable[[], None]) -> None:
    """Do something when a function is called for the n-th time, counted from 1."""
    module, _, rest = name.rpartition(".")
    owner = _resolve(module)
    original, calls = getattr(owner, rest), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            act()
        return original(*args, **kwargs)

    patch.setattr(owner, rest, call)


def _resolve(name: str) -> Any:
    from pydoc import locate

    return locate(name)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


MOMENTS = [  # where the signal strikes in one start after the other -> optimiser steps of 8 batches that are saved
    ("medseg.training.callbacks.Checkpoints.on_train_start", 1, 0),  # before the first step
    ("medseg.training.task.TrainingTask.configure_optimizers", 2, 0),  # while Lightning sets up
    (STEP, 1, 1),  # in the first batch of a step
    (STEP, 8, 2),  # in its last batch, before a validation
    ("medseg.training.callbacks.segment_array", 1, 2),  # when that is made up for
    ("medseg.training.callbacks.segment_array", 2, 4),  # in the next validation
    ("medseg.training.callbacks.segment_array", 1, 4),  # when that is made up for
]


def test_sigterm_finishes_the_step_saves_and_goes_on_exactly(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["trainer.accumulate=8", "trainer.max_epochs=2", "trainer.val_every=1", "model.dropout=0.2"]
    unbroken = train(words, tmp_path / "unbroken", *more)
    run, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    for name, number, steps in MOMENTS:
        with monkeypatch.context() as patch:
            at_call(patch, name, number, stop)
            with pytest.raises(Interrupted, match=r"go on with resume=true\. State was saved") as caught:
                train(words, run, *more, "resume=true")  # as a scheduler does, also the first time
        assert caught.value.exit_code == 143
        assert signal.getsignal(signal.SIGTERM) == before
        assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == steps
    train(words, run, *more, "resume=true")
    for folder in ("", "best"):
        whole = (unbroken / folder / "model.safetensors").read_bytes()
        assert (run / folder / "model.safetensors").read_bytes() == whole


def test_sigterm_while_cases_are_prepared_exits_143_and_leaves_no_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_call(monkeypatch, "medseg.data.prepare.read_channels", 2, stop)
    with pytest.raises(SystemExit) as ended:
        main(["train", words[0], *words[2:], f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"])
    assert ended.value.code == 143
    assert not (tmp_path / "run").exists()
    assert len(list((tmp_path / "cache").rglob("case.json"))) == 1  # which the next start need not do again


def test_the_loss_that_is_shown_is_the_one_that_is_logged(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medseg.training.progress.LINE_SECONDS", 0.0)
    more = ["trainer.progress=true", "trainer.accumulate=2", "trainer.steps_per_epoch=20", "data.folds=1"]
    log = pd.read_csv(next(train(words, tmp_path / "run", *more).glob("logs/*/metrics.csv")))
    shown = dict(re.findall(r"step (\d+)  loss ([\d.]+)", capsys.readouterr().out))
    logged = log.dropna(subset=["train/loss"])
    assert len(logged)
    for step, loss in zip(logged["step"], logged["train/loss"], strict=True):
        assert shown[str(step + 1)] == f"{loss:#.3g}"


# Memory ---------------------------------------------------------------------------------------------------------------

WORDS = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried to"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] . DefaultCPUAllocator: can't allocate memory: you\nError 12"),
    RuntimeError("Caught MemoryError in DataLoader worker process 0.\nOriginal Traceback:\n...\nstd::bad_alloc"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    MemoryError("Unable to allocate 37.3 GiB for an array with shape (1, 100000, 100000)"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", WORDS, ids=range(len(WORDS)))
def test_what_is_said_of_memory_becomes_one_line(error: Exception) -> None:
    with pytest.raises(ResourceError, match=r"out of memory.*smaller plan\.patch_size") as caught, memory_suffices():
        raise error
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes"), OSError(2, "No such file"), KeyError("memory")]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_suffices():
        raise error
    assert caught.value is error


PLACES = (STEP, "medseg.data.prepare.read_channels", "medseg.training.fitting.create_model")


@pytest.mark.parametrize("place", PLACES)
def test_too_little_memory_anywhere_in_a_training_is_exit_4(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail() -> None:
        raise WORDS[0]

    at_call(monkeypatch, place, 1, fail)
    with pytest.raises(ResourceError, match="out of memory"):
        train(words, tmp_path / "run", f"cache_dir={tmp_path / 'cache'}")


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_written(words: list[str], tmp_path: Path) -> None:
    kept = [word for word in words if not word.startswith(("plan.batch_size", "plan.patch_size"))]
    kept += ["data.folds=1", "plan.patch_size=[32,32,32]"]
    with pytest.raises(ResourceError, match="a step on 32768 patches of 32 x 32 x 32 needs more than") as caught:
        train(kept, tmp_path / "run", "plan.batch_size=32768")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()
    train(kept, tmp_path / "run", "plan.batch_size=1")  # what the advice says
