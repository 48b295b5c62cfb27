"""The command line: exit codes, one line, the nearest right name; every config composes and fits its part."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.cli import COMMANDS, main, split_flags, trust_no_folder
from medseg.compose import VERBS, compose, compose_launcher, expand, options
from medseg.errors import BadDataset, UsageError
from medseg.models import MODELS

ROOT = Path(__file__).resolve().parents[2]


def code_and_line(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["trian"], 2, "did you mean 'train'"),
        (["train", "model=unetp"], 2, "did you mean 'unetpp'"),
        (["train", "trainer.max_epoch=5"], 2, "did you mean 'trainer.max_epochs'"),
        (["train", "dat=hippocampus"], 2, "did you mean 'data'"),
        (["train", "plan.patchsize=[1]"], 2, "did you mean 'plan.patch_size'"),
        (["train", "experiment=hippo"], 2, "did you mean 'hippocampus'"),
        (["train", "foo"], 2, "not key=value"),
        (["train", "-m", "model=unet,unetp"], 2, "did you mean 'unetpp'"),
        (["train", "--mutirun"], 2, "did you mean '--multirun'"),
        (["train", "data=/no/such/folder"], 3, "no such folder"),
        (["train", "+model._target_=os.system"], 2, "_target_"),
        (["train", "=3"], 2, "not key=value"),
        (["models", "plugins=[no_such_module]"], 2, "cannot import 'no_such_module'"),
        (["predict"], 2, "'model' is not set"),
        (["predict", "model=a", "input=b", "output=c", "outptu=d"], 2, "did you mean 'output'"),
        (["predict", "model=/no/model", "input=/no", "output=/tmp/x"], 3, "not a model folder"),
        (["export", "model=/no/model", "output=/tmp/x"], 3, "not a model folder"),
        (["export", "model=/no/model", "output=/tmp/x", "format=onxx"], 2, "did you mean 'onnx'"),
        (["evaluate", "predictions=/no/p", "references=/no/r"], 3, "no such folder"),
    ],
)
def test_wrong_words_get_one_line_and_their_exit_code(capsys, words, code, part):
    found, line = code_and_line(capsys, *words)
    assert found == code
    assert part in line
    assert line.startswith("medseg: ")
    assert "\n" not in line


def test_help_of_every_verb(capsys):
    for words in ([], ["--help"], *([verb, "--help"] for verb in VERBS)):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        assert "usage: medseg" in capsys.readouterr().out


def test_verbs_and_configs_agree():
    assert set(COMMANDS) == set(VERBS) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def required(verb):
    needed = {
        "predict": ["model=m", "input=i", "output=o"],
        "evaluate": ["predictions=p", "references=r"],
        "adapt": ["model=m"],
        "export": ["model=m", "output=o"],
    }
    return needed.get(verb, [])


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_file_composes(path):
    group = path.parent.name
    if group == "configs":
        assert compose(path.stem, required(path.stem))
        return
    if group == "launcher":
        assert compose_launcher([f"hydra/launcher={path.stem}"])["cluster"] == path.stem
        return
    extra = ["data.name=n", "data.path=p"] if path.stem == "folder" else []
    verb = "pretrain" if group == "views" else "train"
    assert compose(verb, [f"{group}={path.stem}", *extra])


@pytest.mark.parametrize("name", options("model"))
def test_model_configs_hold_only_arguments_that_their_model_has(name):
    settings = compose("train", [f"model={name}"])["model"]
    assert set(settings) - {"name"} <= MODELS.arguments(settings["name"])


def test_a_folder_as_data(tmp_path):
    folder = tmp_path / "my data, 'odd' name"
    folder.mkdir()
    data = compose("check", [f"data={folder}"])["data"]
    assert data["path"] == str(folder)
    assert data["name"] == folder.name
    assert expand("data=phantom") == ["data=phantom"]
    with pytest.raises(BadDataset):
        expand("data=./nothing")


def test_a_users_own_config(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: unet\nbase_channels: 5\n")
    assert compose("train", ["model=mine"], str(tmp_path))["model"] == {"name": "unet", "base_channels": 5}
    with pytest.raises(UsageError, match="mine"):
        compose("train", ["model=mien"], str(tmp_path))


def test_flags():
    assert split_flags(["a=1", "-m", "--config-dir", "/", "b=2"]) == (["a=1", "b=2"], "/", {"multirun"})


def test_the_composed_config_is_plain_json(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--cfg", "trainer.max_time=00:00:01:30", "fold=all"])
    config = json.loads(capsys.readouterr().out)
    assert (config["trainer"]["max_time"], config["fold"]) == ("00:00:01:30", "all")


def test_cfg_prints_and_never_runs_also_with_multirun(monkeypatch, capsys):
    monkeypatch.setattr("medseg.training.train_command", lambda config: pytest.fail("it ran"))
    for words in (["--cfg", "job"], ["-m", "seed=0,1", "--cfg"]):
        with pytest.raises(SystemExit) as stop:
            main(["train", *words])
        assert stop.value.code == 0
        assert '"run_dir"' in capsys.readouterr().out


def test_multirun_runs_every_combination(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("medseg.training.train_command", seen.append)
    with pytest.raises(SystemExit) as stop:
        main(["train", "-m", "model=unet,unetpp", "seed=0,1", "run_dir=/tmp/sweep"])
    assert stop.value.code == 0
    assert [(c["model"]["name"], c["seed"]) for c in seen] == [
        ("unet", 0), ("unet", 1), ("unetpp", 0), ("unetpp", 1)
    ]  # fmt: skip
    assert [c["run_dir"] for c in seen] == [f"/tmp/sweep/{i}" for i in range(4)]


@pytest.mark.parametrize(("error", "code"), [(MemoryError(), 4), (OSError(28, "No space left"), 4), (KeyError("x"), 1)])
def test_other_errors(monkeypatch, capsys, error, code):
    def broken(config):
        raise error

    monkeypatch.setattr("medseg.models.models_command", broken)
    found, line = code_and_line(capsys, "models")
    assert found == code
    assert ("bug in medseg" in line) == (code == 1)


def test_a_foreign_folder_runs_none_of_its_files(tmp_path):
    for name in ("psutil", "yaml", "hydra", "pydantic", "json", "random"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'a').write({name!r})\n")
    (tmp_path / "mine.py").write_text("from medseg.models import MODELS\nMODELS.register('mine')(MODELS.get('unet'))\n")
    words = ["models", "pattern=mine", "plugins=[mine]"]
    env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    code = f"import sys; from medseg.cli import main; sys.argv[1:] = {words!r}; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
    assert not (tmp_path / "it_ran").exists()


def test_python_m_takes_its_folder_off_the_path_here_and_in_processes_to_come(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    trust_no_folder()
    assert not {"", str(tmp_path)} & set(sys.path)
    assert os.environ["PYTHONSAFEPATH"] == "1"
