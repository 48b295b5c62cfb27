"""``--help`` lists every key of the groups that are chosen, within 80 columns."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from medseg.compose import compose, dotted, load_config, options
from medseg.help import _expectations, verb_help
from medseg.models import MODELS
from medseg.registry import Registry
from medseg.settings import CLASSES
from medseg.settings.parts import arguments_of
from medseg.settings.wording import expected
from medseg.targets import TARGETS


@pytest.mark.parametrize("verb", list(CLASSES))
def test_every_key_of_a_verb_is_listed_with_what_it_may_be(verb: str) -> None:
    text = verb_help(verb)
    for key in dotted(compose(verb, whole=False)):
        indent = "  " * key.count(".")
        assert re.search(rf"^{indent}{key.rpartition('.')[2]}:", text, re.MULTILINE), key
    assert max(map(len, text.splitlines())) <= 80 or verb in ("train", "pretrain", "adapt")  # a run folder's name
    assert "[true or false]" in text


def test_the_keys_are_those_of_the_chosen_model() -> None:
    plain, chosen = verb_help("train"), verb_help("train", ["model=hybridgnet", "augmentation=landmarks"])
    assert "  skip_layers:" in chosen
    assert "  skip_layers:" not in plain
    assert "model=hybridgnet. Landmarks on a graph" in chosen
    assert "[a whole number, 1 to 64]" in chosen  # terms


@pytest.mark.parametrize(("group", "registry"), [("model", MODELS), ("target", TARGETS)])
def test_what_is_said_of_a_parts_keys_is_what_its_constructor_takes(group: str, registry: Registry) -> None:
    for option in options(group):
        values = load_config(f"{group}/{option}.yaml")
        fields = arguments_of(registry.get(values.pop("name"))).model_fields
        said = _expectations("train", compose("train", [f"{group}={option}"], whole=False))
        for name, value in values.items():
            if type(value) in (bool, int, float):
                assert expected(fields[name]).startswith(said[f"{group}.{name}"]), f"{option}.{name}"  # or more


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from medseg.help import verb_help; verb_help('train'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_config_of_ones_own_has_its_own_words(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# Mine alone.\nname: unet\nbase_channels: 5  # few\n")
    text = verb_help("train", ["model=mine"], str(tmp_path))
    assert "# model=mine. Mine alone." in text
    assert "# few [a whole number" in text
