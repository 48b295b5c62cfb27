"""medseg adapt on tiny phantoms: what is trained, what is saved, what the predictor makes of it, refusals."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pytest
import torch

from medseg.cli import main
from medseg.compose import compose
from medseg.errors import BadDataset, Interrupted, UsageError
from medseg.inference import Predictor
from medseg.io import find_adapter, load_adapter, load_model, save_onnx
from medseg.training import fit
from medseg.training.adapt_checks import check_request
from medseg.training.adapting import METHODS, adapt

TINY = ["trainer.steps_per_epoch=3", "trainer.progress=false", "trainer.threads=1", "data.loader_workers=0"]
PLAN = ["plan.patch_size=[16,16,16]", "plan.strides=[[1,1,1],[2,2,2]]", "plan.batch_size=2", "model.base_channels=4"]


@pytest.fixture(scope="module")
def words(tiny_phantoms, tmp_path_factory) -> list[str]:
    return [f"data={tiny_phantoms}", f"cache_dir={tmp_path_factory.mktemp('cache')}", *TINY]


@pytest.fixture(scope="module")
def base(words, tmp_path_factory):
    run = tmp_path_factory.mktemp("base") / "run"
    return fit(compose("train", [*words, *PLAN, f"run_dir={run}", "trainer.max_epochs=2"]))


@pytest.fixture(scope="module")
def sliced_base(words, tmp_path_factory):
    settings = ["data.slices=axial", "model.base_channels=4", "plan.batch_size=2", "trainer.max_epochs=1"]
    return fit(compose("train", [*words, *settings, f"run_dir={tmp_path_factory.mktemp('sliced') / 'run'}"]))


def adapted(words, base, run, *more: str):
    return adapt(compose("adapt", [*words, f"model={base}", f"run_dir={run}", "trainer.max_epochs=1", *more]))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "skip_scale"])
def test_only_the_chosen_part_is_trained_and_saved(words, base, tmp_path, method) -> None:
    run = adapted(words, base, tmp_path, f"method={method}")
    state, description = load_adapter(run)
    prefixes = {
        "skip_tuner": {"skips"},
        "head": {"heads"},
        "decoder": {"heads", "decoder"},
        "all": {"heads", "decoder", "encoder"},
    }
    assert {name.partition(".")[0] for name in state} == prefixes[method]
    assert description["training"]["steps"] == 3
    assert sum(x.numel() for x in state.values()) == description["training"]["trained_parameters"]
    size = sum(path.stat().st_size for path in (run / "adapter").iterdir())
    assert method == "all" or size < (base / "model.safetensors").stat().st_size


def test_predictor_puts_the_adapter_on_top(words, base, tmp_path, tiny_phantoms) -> None:
    run = adapted(words, base, tmp_path, "optimizer.lr=0.1")
    image = next((tiny_phantoms / "imagesTs").iterdir())
    plain = Predictor.from_pretrained(base).predict(image, probabilities=True).probabilities
    given = Predictor.from_pretrained(base, adapter=run / "adapter").predict(image, probabilities=True).probabilities
    named = Predictor.from_pretrained(run / "adapter").predict(image, probabilities=True).probabilities
    assert np.array_equal(given, named)
    assert not np.allclose(given, plain)


def test_held_out_cases_are_compared_and_other_parts_attached(words, base, tmp_path) -> None:
    skips = "skips={edit:[{name:sc_tuner,ratio:0.25,include_bottleneck:true}]}"
    run = adapted(words, base, tmp_path, "data.folds=5", skips, "train=skips+head")
    assert (run / "before.json").is_file()
    assert (run / "after.json").is_file()
    state, _ = load_adapter(run)
    assert {name.partition(".")[0] for name in state} == {"skips", "heads"}
    assert any(".bottleneck." in name for name in state)


def test_scales_are_chosen_without_training_and_never_hurt(words, base, tmp_path) -> None:
    run = adapted(words, base, tmp_path, "method=skip_scale", "skip_scale.grid=[0.5,1.2]")
    state, description = load_adapter(run)
    assert not state
    facts, factors = description["training"], description["skips"]["edit"][0]["per_level"]
    assert facts["after"] >= facts["before"]
    network = Predictor.from_pretrained(run).members[0].network
    assert [part.factor for part in network.skips.edits[0].values()] == factors


@pytest.mark.parametrize("method", ["skip_tuner", "skip_scale"])
def test_a_base_trained_on_slices_is_adapted(words, sliced_base, tmp_path, method) -> None:
    run = adapted(words, sliced_base, tmp_path, f"method={method}", "skip_scale.grid=[0.5]")
    state = load_adapter(run)[0]
    assert all(name.startswith("skips.") for name in state), "the names are those of the network inside"
    assert Predictor.from_pretrained(run)


def test_an_adapter_of_another_base_is_refused_with_code_2(words, base, tmp_path, tiny_phantoms, capsys) -> None:
    run = adapted(words, base, tmp_path / "run")
    other = tmp_path / "other"
    shutil.copytree(base, other, ignore=shutil.ignore_patterns("checkpoints", "validation"))
    from medseg.io import save_model

    state, description = load_model(base)
    save_model(other, {name: tensor + 1 for name, tensor in state.items()}, description)
    with pytest.raises(SystemExit) as stop:
        main(["predict", f"model={other}", f"adapter={run}", f"input={tiny_phantoms}", f"output={tmp_path / 'out'}"])
    assert stop.value.code == 2
    assert "is of another model" in capsys.readouterr().err
    with pytest.raises(UsageError, match="is an adapter itself"):
        adapted(words, run, tmp_path / "again")


def test_a_model_without_skip_paths_is_refused_before_any_data_is_read(tmp_path) -> None:
    from medseg.io import save_model

    save_model(tmp_path / "base", {"x": torch.zeros(1)}, {"model": {"name": "hybridgnet"}, "plan": {}})
    with pytest.raises(UsageError, match="'hybridgnet' hosts no skip paths"):
        adapt(compose("adapt", [f"model={tmp_path / 'base'}", f"run_dir={tmp_path / 'run'}", "method=head"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("skips={edit:[sc_tuner]}", "takes no skips="),
        ("train=head", "takes no train="),
        ("skip_scale.grid=[abc]", "grid of calibrate_skips"),
        ("skip_scale.grid=[]", "grid of calibrate_skips"),
        ("skip_scale.tolerance=-1", "tolerance of calibrate_skips"),
    ],
)
def test_scales_refuse_what_has_no_effect_or_cannot_be_searched(tmp_path, word, message) -> None:
    cfg = compose("adapt", ["model=base", "method=skip_scale", f"run_dir={tmp_path / 'run'}", word])
    with pytest.raises(UsageError, match=message):
        check_request(cfg, tmp_path)


def test_adapters_and_exports_take_no_adapter(words, base, tmp_path) -> None:
    export, adapter = tmp_path / "export", adapted(words, base, tmp_path / "run", "method=head")
    save_onnx(export, b"", load_model(base)[1])
    for model, given, message in (
        (adapter, adapter, "is an adapter itself"),
        (export, adapter, "an exported model takes no adapter"),
        (base, [adapter], "expected one folder"),
    ):
        with pytest.raises(UsageError, match=message):
            Predictor.from_pretrained(model, adapter=given)
    with pytest.raises(UsageError, match="is an exported model"):
        adapted(words, export, tmp_path / "again")


def test_wrong_words_are_refused(words, base, tmp_path) -> None:
    with pytest.raises(UsageError, match="did you mean 'skip_tuner'"):
        adapted(words, base, tmp_path, "method=skip_tunr")
    with pytest.raises(UsageError, match="did you mean 'sc_tuner'"):
        adapted(words, base, tmp_path, "skips={edit:[sc_tunr]}")


@pytest.mark.parametrize("skips", ["sc_tuner", "[sc_tuner]", "{edit:[{name:sc_tuner,levels:1}]}"])
def test_skips_of_another_form_are_refused(words, base, tmp_path, skips) -> None:
    with pytest.raises(UsageError, match=r"a merge cannot be attached|unknown skip merge|skips is|levels is 1"):
        adapted(words, base, tmp_path, f"skips={skips}")


def test_a_refused_run_leaves_the_folder_as_it_was(words, base, tmp_path) -> None:
    config = (base / "config.json").read_bytes()
    with pytest.raises(UsageError, match="run_dir is the folder of the model"):
        adapted(words, base, base)
    with pytest.raises(UsageError, match=r"fold is 'all' \(expected a whole number"):
        adapted(words, base, tmp_path, "fold=all")
    other = tmp_path / "other"
    shutil.copytree(base, other)
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        adapted(words, base, other)
    assert (base / "config.json").read_bytes() == (other / "config.json").read_bytes() == config
    with pytest.raises(UsageError, match="resume=true: verb is adapt, the run in this folder has train"):
        adapted(words, base, other, "method=decoder", "resume=true")
    for name in ("config.json", "run.json"):
        assert (other / name).read_bytes() == (base / name).read_bytes()


def test_the_adapter_names_the_weights_that_were_read_and_goes_on_with_its_own(
    words, base, tmp_path, monkeypatch
) -> None:
    from medseg.io import model_fingerprint, save_model
    from medseg.training import adapting

    copy, run_loop, before = tmp_path / "base", adapting.TrainingLoop.run, model_fingerprint(base)
    shutil.copytree(base, copy, ignore=shutil.ignore_patterns("checkpoints", "validation"))
    state, description = load_model(copy)

    def train_again(loop):
        save_model(copy, {name: tensor + 1 for name, tensor in state.items()}, description)
        return run_loop(loop)

    monkeypatch.setattr(adapting.TrainingLoop, "run", train_again)
    run = adapted(words, copy, tmp_path / "run", "method=head")
    assert load_adapter(run)[1]["base"]["fingerprint"] == before
    with pytest.raises(UsageError, match="resume=true: method is decoder, the run in this folder has head"):
        adapted(words, copy, run, "method=decoder", "resume=true")
    with pytest.raises(BadDataset, match=r"resume=true: base is \w+, the run in this folder has"):
        adapted(words, copy, run, "method=head", "resume=true")
    assert adapted(words, base, run, "method=head", "resume=true") == run  # the same weights in another place


def test_sigterm_finishes_the_step_and_goes_on_exactly(words, base, tmp_path, monkeypatch) -> None:
    from medseg.training.task import SegmentationTask

    whole, step = adapted(words, base, tmp_path / "whole", "method=head"), SegmentationTask.training_step

    def told_to_stop(task, batch, index):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(task, batch, index)

    monkeypatch.setattr(SegmentationTask, "training_step", told_to_stop)
    with pytest.raises(Interrupted) as stopped:
        adapted(words, base, tmp_path / "run", "method=head")
    monkeypatch.undo()
    assert stopped.value.exit_code == 143
    run = adapted(words, base, tmp_path / "run", "method=head", "resume=true")
    for name, tensor in load_adapter(whole)[0].items():
        assert torch.equal(tensor, load_adapter(run)[0][name])


def test_an_adapted_model_is_exported(words, base, tmp_path) -> None:
    from medseg.inference.export import export_model

    run = adapted(words, base, tmp_path / "run")
    (bundle,) = export_model(run / "adapter", tmp_path / "bundle", "monai")
    assert (bundle / "models" / "model.ts").is_file()


def test_data_of_another_task_is_refused(words, base, tmp_path) -> None:
    from medseg.data.dataset import open_dataset
    from medseg.data.plan import Plan
    from medseg.training.adapting import check_site

    dataset = open_dataset(words[0].partition("=")[2])
    plan = Plan.from_dict(load_model(base)[1]["plan"])
    check_site(dataset, plan)
    with pytest.raises(BadDataset, match="the model has"):
        check_site(dataset, Plan.from_dict({**plan.to_dict(), "labels": {"background": 0, "liver": 1}}))


def test_a_missing_base_is_named(words, base, tmp_path) -> None:
    run = adapted(words, base, tmp_path / "run", "method=head")
    moved = tmp_path / "moved"
    shutil.copytree(run / "adapter", moved)
    text = (moved / "model.json").read_text(encoding="utf-8").replace(str(base), "/nowhere/base")
    (moved / "model.json").write_text(text, encoding="utf-8")
    assert find_adapter(moved) == moved
    with pytest.raises(Exception, match="/nowhere/base is not there"):
        Predictor.from_pretrained(moved)
    assert Predictor.from_pretrained(base, adapter=moved)
