"""What a user may write on a command line or into a config of their own, and what they are told where it is wrong."""

from __future__ import annotations

import pytest

from medseg.cli import run
from medseg.compose import compose
from medseg.errors import UsageError
from medseg.settings import CLASSES, settings_class, settings_of
from medseg.settings.keys import verbatim_keys

REQUIRED = {
    "predict": ["model=m", "input=i", "output=o"],
    "evaluate": ["predictions=p", "references=r"],
    "adapt": ["model=m"],
    "export": ["model=m", "output=o"],
}


def test_paths_may_hold_what_hydras_grammar_reserves():
    odd = "/tmp/a=b (1), [c] {d}'s/x.nii.gz"
    config = compose("predict", [f"model={odd}", f"input={odd}", f"output={odd}"])
    assert [config[key] for key in ("model", "input", "output")] == [odd] * 3
    assert compose("train", [f"data.split_file={odd}"])["data"]["split_file"] == odd
    assert compose("train", [f"run_dir={odd}"])["run_dir"] == odd


@pytest.mark.parametrize("verb", list(CLASSES))
def test_every_path_and_text_is_taken_as_it_stands_and_knows_the_home_folder(verb, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of mine")
    odd = "~/a=b (1), {d}'s, é [2]"
    keys = verbatim_keys(settings_class(verb)) - {"evaluate": {"model"}}.get(verb, set())
    own = [word for word in REQUIRED.get(verb, []) if word.partition("=")[0] not in keys]
    config = compose(verb, [*own, *(f"{key}={odd}" for key in keys), *(["fix=true"] if verb == "check" else [])])
    settings = settings_of(verb, config).to_config()
    for key in keys:
        assert at(config, key) == odd, key
        text = key in ("cases", "pattern", "cluster", "stratify", "data.name", "data.test", "data.group_by")
        assert at(settings, key) == (odd if text else odd.replace("~", "/home/of mine")), key


def at(config, key):
    for part in key.split("."):
        config = config[part]
    return config


def test_a_name_of_something_that_is_there_is_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("[x,y]", "'q'", "null"):
        (tmp_path / name).mkdir()
        assert compose("export", [f"model={name}", "output=o"])["model"] == name


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["labels=a:1", "labels=b:2"], r"labels is given 2 times: .*'labels=\{a:1,b:2\}' into quotes"),
        (["labels=whole:[1", "labels=2]", "labels=inner:[2]"], r"'labels=\{whole:\[1,2\],inner:\[2\]\}' into quotes"),
        (["confidence=0.9", "confidence=0.95"], "confidence is given 2 times: 0.9 and 0.95. Fix: give it once"),
        (["labels={a:", "1}"], r"'1\}' is not key=value.*quotes.*'labels=\{a: 1\}'"),
    ],
)
def test_keys_given_twice_and_words_that_the_shell_divided(words, part):
    with pytest.raises(UsageError, match=part):
        run(["evaluate", "predictions=p", "references=r", *words])


@pytest.mark.parametrize("order", [1, -1])
def test_what_a_word_says_of_a_dataset_wins_over_its_folder(tmp_path, order):
    data = compose("check", [f"data={tmp_path}", "data.name=mine"][::order])["data"]
    assert (data["path"], data["name"]) == (str(tmp_path), "mine")


def test_the_word_that_is_wrong_is_named_and_not_the_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "png").mkdir()
    with pytest.raises(UsageError, match=r"^there is no key 'trainer.max_tim': did you mean 'trainer.max_time'"):
        compose("train", ["data=png", "trainer.max_tim=1"])
    with pytest.raises(UsageError, match=r"^data=gif: \(known: .*, or a folder or list of yours"):
        compose("train", ["data=gif"])


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
