"""What a user may write on a command line or into a config of their own, and what they are told where it is wrong."""

from __future__ import annotations

import pytest

from medseg.compose import compose
from medseg.errors import UsageError


def test_paths_may_hold_what_hydras_grammar_reserves():
    odd = "/tmp/a=b (1), [c] {d}'s/x.nii.gz"
    config = compose("predict", [f"model={odd}", f"input={odd}", f"output={odd}"])
    assert [config[key] for key in ("model", "input", "output")] == [odd] * 3
    assert compose("train", [f"data.split_file={odd}"])["data"]["split_file"] == odd
    assert compose("train", [f"run_dir={odd}"])["run_dir"] == odd


def test_lists_null_and_interpolations_keep_their_meaning():
    config = compose("predict", ["model=[/a,/b]", "input=i", "output='o'"])
    assert (config["model"], config["output"]) == (["/a", "/b"], "o")
    assert compose("train", ["cache_dir=null"])["cache_dir"] is None
    assert compose("train", ["run_dir=runs/${seed}", "seed=7"])["run_dir"] == "runs/7"


@pytest.mark.parametrize(
    ("verb", "words", "part"),
    [
        ("models", ["pattern=[a"], r"'pattern=\[a' cannot be read"),
        ("train", ["data="], "data"),
        ("train", ["data=null"], "data=null"),
        ("train", ["model=unet,unetpp"], "several values need --multirun"),
        ("train", ["qqqqqq=1"], "medseg train --help lists them"),
        ("models", ["model=unet"], "no key 'model'"),
        ("train", ["model=hybridgnet", "model.skips=add"], "no key 'model.skips' with model=hybridgnet.*skip_layers"),
        ("train", ["model.num_heads=4"], "no key 'model.num_heads' with model=unet"),
        ("train", ["experiment=hybridgnet_lungs", "target.binary=true"], "'target.binary' with target=landmarks"),
        ("train", ["model.num_heads=4", "model.head_norm=true"], "no key 'model.num_heads' with the model"),
    ],
)
def test_wrong_words_are_usage_errors(verb, words, part):
    with pytest.raises(UsageError, match=part):
        compose(verb, words)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: [unet\n", "broken.yaml"),
        ("name: ${nope}\n", "nope"),
        ("name: unet\n_target_: os.system\n", "_target_"),
        ("name: unet\nlayers: [{_target_: os.system}]\n", "_target_"),
    ],
)
def test_a_users_broken_config_is_a_usage_error(tmp_path, text, part):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.yaml").write_text(text)
    with pytest.raises(UsageError, match=part):
        compose("train", ["model=broken"], str(tmp_path))


def test_composing_leaves_nothing_behind(tmp_path, monkeypatch):
    import logging

    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)
    handlers = list(logging.getLogger().handlers)
    compose("train")
    assert not list(tmp_path.iterdir())
    assert not GlobalHydra.instance().is_initialized()
    assert logging.getLogger().handlers == handlers


def test_an_experiment_may_set_any_key_and_a_word_wins_over_it():
    config = compose("train", ["experiment=transdae_synapse", "plan.batch_size=3"])
    assert (config["seed"], config["plan"]["patch_size"], config["plan"]["batch_size"]) == (1234, [224, 224], 3)
    assert config["target"]["loss"]["include_background"] is True
    assert compose("train", ["experiment=transdae"])["optimizer"]["lr"] == 5e-4
