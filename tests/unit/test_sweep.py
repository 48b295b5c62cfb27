"""Every combination, composed before the first one runs; paths with commas and brackets stay whole."""

from __future__ import annotations

import pytest

from medseg.errors import UsageError
from medseg.sweep import sweep


def test_every_combination_has_its_words_config_and_folder():
    jobs = sweep("train", ["model=unet,unetpp", "seed=0,1", "run_dir=/tmp/my sweep"])
    assert [words for words, _ in jobs] == [
        ["model=unet", "seed=0", "run_dir=/tmp/my sweep/0"],
        ["model=unet", "seed=1", "run_dir=/tmp/my sweep/1"],
        ["model=unetpp", "seed=0", "run_dir=/tmp/my sweep/2"],
        ["model=unetpp", "seed=1", "run_dir=/tmp/my sweep/3"],
    ]
    assert [(c["model"]["name"], c["seed"], c["run_dir"]) for _, c in jobs[1:3]] == [
        ("unet", 1, "/tmp/my sweep/1"),
        ("unetpp", 0, "/tmp/my sweep/2"),
    ]


def test_only_training_gets_run_folders():
    assert [words for words, _ in sweep("models", ["pattern=a,b"])] == [["pattern=a"], ["pattern=b"]]


def test_runs_without_a_folder_named_never_share_one():
    folders = [config["run_dir"] for _, config in sweep("train", ["seed=0,1"])]
    assert len(set(folders)) == 2
    assert all(folder.startswith("runs/multirun/") for folder in folders)


def test_a_path_with_commas_and_brackets_is_one_value(tmp_path):
    odd, other = tmp_path / "a, b (1) [2]", tmp_path / "other"
    for folder in (odd, other):
        folder.mkdir()
    [(_, config)] = sweep("predict", [f"model={odd}", f"input={odd}", "output=o"])
    assert (config["model"], config["input"]) == (str(odd), str(odd))
    [(_, config)] = sweep("check", [f"data={odd}"])
    assert config["data"]["path"] == str(odd)
    assert len(sweep("check", [f"data={other},{tmp_path}"])) == 2


@pytest.mark.parametrize("word", ["pattern=[a", "pattern=x(1"])
def test_what_cannot_be_read_is_named(word):
    with pytest.raises(UsageError, match="cannot be read"):
        sweep("models", [word])


def test_a_wrong_word_in_the_last_job_stops_the_sweep():
    with pytest.raises(UsageError, match="did you mean 'unetpp'"):
        sweep("train", ["model=unet,unetp"])
