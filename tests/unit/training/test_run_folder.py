"""Locks and checkpoints of a run folder."""

import os

import pytest
import torch

from medseg.errors import ResourceError, UsageError
from medseg.training.run_folder import AtomicCheckpointIO, RunFolder, previous
from medseg.training.signals import catch_stop_signals


def test_a_second_run_is_refused_and_the_lock_is_given_back(tmp_path):
    with RunFolder(tmp_path).lock(), pytest.raises(UsageError, match="another run"), RunFolder(tmp_path).lock():
        pass
    with RunFolder(tmp_path).lock():
        pass


def test_an_existing_checkpoint_is_not_overwritten_by_accident(tmp_path):
    run = RunFolder(tmp_path)
    assert run.newest_checkpoint(resume=True) is None
    AtomicCheckpointIO().save_checkpoint({"step": 1}, run.checkpoint)
    with pytest.raises(UsageError, match="resume=true"):
        run.newest_checkpoint(resume=False)
    assert run.newest_checkpoint(resume=True) == run.checkpoint


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    run, io = RunFolder(tmp_path), AtomicCheckpointIO()
    io.save_checkpoint({"step": 1, "weights": torch.ones(1000)}, run.checkpoint)
    io.save_checkpoint({"step": 2, "weights": torch.ones(1000)}, run.checkpoint)
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:500])
    found = run.newest_checkpoint(resume=True)
    assert found == previous(run.checkpoint)
    assert io.load_checkpoint(found)["step"] == 1
    assert "Trying the checkpoint before it" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="run_dir"):
        RunFolder(tmp_path / "file" / "run")


@pytest.mark.parametrize(("signum", "code"), [(15, 143), (2, 130)])
def test_signals_are_noted_and_become_exit_codes(signum, code):
    with catch_stop_signals() as stop:
        os.kill(os.getpid(), signum)
        assert stop.signum == signum
        assert stop.error().exit_code == code
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
