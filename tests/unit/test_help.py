"""``--help`` lists every key of the groups that are chosen, within 80 columns."""

from __future__ import annotations

import re

import pytest

from medseg.compose import compose, dotted
from medseg.help import verb_help
from medseg.settings import CLASSES


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
    assert "[a whole number, 1 to 64, or null]" in chosen  # terms: of a constructor, not of a file


def test_a_config_of_ones_own_has_its_own_words(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# Mine alone.\nname: unet\nbase_channels: 5  # few\n")
    text = verb_help("train", ["model=mine"], str(tmp_path))
    assert "# model=mine. Mine alone." in text
    assert "# few [a whole number" in text
