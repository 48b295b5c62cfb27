"""Locks and checkpoints of a run folder."""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.errors import ResourceError, UnreadableFile, UnsafeArtefact, UsageError
from medseg.io import save_checkpoint
from medseg.training.checkpoints import NEEDED, RUN, AtomicCheckpointIO, RunPart, read_own
from medseg.training.run_folder import RunFolder
from medseg.training.run_record import RunRecord, begin
from medseg.training.signals import StopRequest, catch_stop_signals


@pytest.fixture
def part(tmp_path: Path) -> RunPart:
    """A run whose record is written."""
    record = RunRecord.of("train", {"seed": 0}, {}, splits=[], cases={})
    begin(RunFolder(tmp_path), record, record.config, resumed=False)
    return RunPart(RunFolder(tmp_path), record)


def save(part: RunPart, step: int) -> None:
    state = {**dict.fromkeys(NEEDED, 0), "global_step": step, "weights": torch.full((100,), float(step))}
    AtomicCheckpointIO(part).save_checkpoint(state, part.folder.checkpoint)
    part.begun()


def step_of(part: RunPart, path: Path | None) -> int:
    assert path is not None
    state = read_own(path, part.identity)
    assert (state["weights"] == state["global_step"]).all()
    return int(state["global_step"])


# Locks ----------------------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_the_lock_is_given_back(tmp_path: Path) -> None:
    with RunFolder(tmp_path).lock(), pytest.raises(UsageError, match="another run"), RunFolder(tmp_path).lock():
        pass
    with RunFolder(tmp_path).lock():
        RunFolder(tmp_path).record.touch()
    assert (tmp_path / ".lock").is_file()


def test_a_folder_in_which_nothing_was_written_is_removed_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="refused"), RunFolder(tmp_path / "a" / "b").lock():
        raise UsageError("refused")
    assert not list(tmp_path.iterdir())
    with RunFolder(tmp_path / "a" / "b").lock():
        (tmp_path / "a" / "b" / "result").touch()
    assert (tmp_path / "a" / "b" / "result").is_file()
    (tmp_path / "empty").mkdir()
    with RunFolder(tmp_path / "empty").lock():
        pass
    assert (tmp_path / "empty").is_dir()  # which was there before


@pytest.mark.parametrize("kind", ["link to a file", "link to nothing", "folder", "pipe"])
def test_a_lock_that_is_no_plain_file_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    lock, precious = tmp_path / "run" / ".lock", tmp_path / "precious"
    lock.parent.mkdir()
    if kind == "link to a file":
        precious.write_text("precious")
    if kind.startswith("link"):
        lock.symlink_to(precious)
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    with pytest.raises(UsageError, match="remove it"), RunFolder(lock.parent).lock():
        pass
    assert precious.exists() == (kind == "link to a file")
    assert kind != "link to a file" or precious.read_text() == "precious"
    lock.rmdir() if kind == "folder" else lock.unlink()  # what the advice says
    with RunFolder(lock.parent).lock():
        pass


def test_a_lock_with_other_content_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    os.link(tmp_path / "precious", tmp_path / ".lock")
    with RunFolder(tmp_path).lock():
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run", Path("/proc/x/run")):
        with pytest.raises(ResourceError, match="run_dir"), RunFolder(path).lock():
            pass


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_the_newest_and_the_one_before_it(part: RunPart) -> None:
    assert part.newest_checkpoint() is None
    save(part, 1)
    save(part, 2)
    assert step_of(part, part.newest_checkpoint()) == 2
    assert step_of(part, part.folder.previous) == 1


def flipped(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped": flipped,
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "zeroed": lambda data, rng: data[: (at := rng.randrange(len(data) - 64))] + bytes(64) + data[at + 64 :],
    "longer": lambda data, rng: data + rng.randbytes(10),
    "doubled": lambda data, rng: data + data[: rng.randrange(1, len(data))],
    "overwritten": lambda data, rng: data[: len(data) // 2] + rng.randbytes(len(data) - len(data) // 2),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_never_costs_the_good_one(part: RunPart, damage: str) -> None:
    """Wherever it is damaged: the newest is either read as it was, or gives way and is never rotated."""
    rng = random.Random(damage)
    save(part, 1)
    save(part, 2)
    good = part.folder.checkpoint.read_bytes(), part.folder.previous.read_bytes()
    for _ in range(25):
        part.folder.checkpoint.write_bytes(DAMAGES[damage](good[0], rng))
        part.folder.previous.write_bytes(good[1])
        found = step_of(part, part.newest_checkpoint())
        assert found in (1, 2)
        save(part, 3)
        assert step_of(part, part.newest_checkpoint()) == 3
        assert step_of(part, part.folder.previous) == found


def torch_file(path: Path) -> None:
    save_checkpoint(path, {"state_dict": {"w": torch.ones(3)}, "global_step": 7})


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", "<text/>")


def of_another_network(path: Path) -> None:
    other = RunRecord.of("train", {"seed": 1}, {}, splits=[], cases={})
    save_checkpoint(path, {**dict.fromkeys(NEEDED, 0), RUN: other.identity()})


def pickled(path: Path) -> None:
    torch.save({"code": print}, path)


def old_pickle(path: Path) -> None:
    torch.save({"a": 1}, path, _use_new_zipfile_serialization=False)


FOREIGN: dict[str, tuple[Callable[[Path], Any], type[Exception]]] = {
    "empty": (lambda path: path.write_bytes(b""), UnreadableFile),
    "text": (lambda path: path.write_text("not a checkpoint"), UnreadableFile),
    "archive": (archive, UnreadableFile),
    "folder": (lambda path: path.mkdir(), UnreadableFile),
    "dangling link": (lambda path: path.symlink_to("nowhere"), UnreadableFile),
    "tensor": (lambda path: torch.save(torch.ones(3), path), UnreadableFile),
    "torch file": (torch_file, UnreadableFile),
    "another network": (of_another_network, UnreadableFile),
    "pickle": (pickled, UnsafeArtefact),
    "old pickle": (old_pickle, UnsafeArtefact),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_nothing_starts_anew_where_no_checkpoint_is_one(part: RunPart, kind: str) -> None:
    make, error = FOREIGN[kind]
    save(part, 1)
    save(part, 2)
    for path in (part.folder.checkpoint, part.folder.previous):
        path.unlink()
        make(path)
    with pytest.raises(error) as refused:
        part.newest_checkpoint()
    assert refused.value.exit_code == (5 if error is UnsafeArtefact else 3)  # type: ignore[attr-defined]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [kind for kind in FOREIGN if kind != "folder"])
def test_foreign_content_is_never_rotated_over_a_good_checkpoint(part: RunPart, kind: str) -> None:
    save(part, 1)
    part.folder.checkpoint.rename(part.folder.previous)
    FOREIGN[kind][0](part.folder.checkpoint)
    save(part, 3)
    assert step_of(part, part.folder.checkpoint) == 3
    assert step_of(part, part.folder.previous) == 1


def test_a_checkpoint_of_another_run_or_fold_is_refused_and_the_advice_works(part: RunPart) -> None:
    save(part, 1)
    save(part, 2)
    fold = RunPart(part.run, part.record, "fold_1")
    fold.folder.checkpoint.parent.mkdir(parents=True)
    own = part.folder.checkpoint.read_bytes()
    fold.folder.checkpoint.write_bytes(own)
    with pytest.raises(UnreadableFile, match="is no checkpoint of this run"):
        fold.newest_checkpoint()
    save(fold, 5)
    part.folder.checkpoint.write_bytes(fold.folder.checkpoint.read_bytes())
    with pytest.raises(UnreadableFile, match="remove this one to go on with the other"):
        part.newest_checkpoint()
    part.folder.checkpoint.unlink()
    assert step_of(part, part.newest_checkpoint()) == 1
    part.folder.checkpoint.write_bytes(own)  # "put the run's own checkpoint there"
    assert step_of(part, part.newest_checkpoint()) == 2


def test_checkpoints_that_are_gone_are_missed(part: RunPart) -> None:
    save(part, 1)
    whole = part.folder.checkpoint.read_bytes()
    part.folder.checkpoint.unlink()
    with pytest.raises(UnreadableFile, match="they are gone") as refused:
        part.newest_checkpoint()
    assert "bring one back from a copy" in str(refused.value)
    part.folder.checkpoint.write_bytes(whole)
    assert step_of(part, part.newest_checkpoint()) == 1


def test_a_save_that_fails_leaves_both_checkpoints(part: RunPart, monkeypatch: pytest.MonkeyPatch) -> None:
    save(part, 1)
    save(part, 2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("torch.save", "medseg.io.checkpoint.sync"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            with pytest.raises(ResourceError, match="No space left"):
                save(part, 3)
        assert step_of(part, part.folder.checkpoint) == 2
        assert step_of(part, part.folder.previous) == 1


# Signals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(15, 143), (2, 130)])
def test_signals_are_noted_and_become_exit_codes(signum: int, code: int) -> None:
    stop = StopRequest()
    with catch_stop_signals(stop):
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
        assert stop.error().exit_code == code
        os.kill(os.getpid(), 15)  # schedulers repeat it
        assert stop.signum == signum
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), 2)
