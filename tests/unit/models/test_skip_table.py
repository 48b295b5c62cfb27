"""What medseg skips says of every part."""

from __future__ import annotations

from io import StringIO

import pytest

from medseg.cli import main
from medseg.errors import UsageError
from medseg.models.skip_table import describe_parts, part_table
from medseg.testing import skip_cases


def test_every_part_describes_itself_and_what_it_costs() -> None:
    cards = describe_parts({"name": "unet", "spatial_dims": 2, "base_channels": 4, "depth": 2})
    assert set(skip_cases()) <= {(card.role, card.name) for card in cards}
    for card in cards:
        assert card.source != "-", f"the docstring of {card.name} needs a line 'Source: ...'"
        assert card.summary.endswith("."), card.name
    added = {card.name: card.added for card in cards}
    assert added["concat"] == added["scale"] == 0
    assert added["sc_tuner"] == sum(2 * c * c + 2 * c for c in (4, 8))
    assert {card.name for card in cards if card.neutral} == {"scale", "sc_tuner", "csc_tuner", "spatial_context"}


def test_brackets_are_no_markup_and_nothing_is_cut_off() -> None:
    from rich.console import Console

    table = part_table({"name": "unet", "spatial_dims": 2, "base_channels": 4, "depth": 2})
    for width in (400, 80):
        console = Console(width=width, record=True, file=StringIO())
        console.print(table)
        text = console.export_text()
        assert "…" not in text
        assert width < 400 or "x = W [decoder, skip]; x + gate(x) * x" in text


def test_a_part_that_does_not_fit_is_shown_as_such(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["skips", "model=unetpp", "model.base_channels=4"])
    assert stop.value.code == 0
    assert "does not" in capsys.readouterr().out


def test_a_model_without_skip_paths_is_refused(monkeypatch) -> None:
    from torch import nn

    from medseg.models import MODELS

    monkeypatch.setitem(MODELS._factories, "no_skips", lambda *, spatial_dims: nn.Identity())
    with pytest.raises(UsageError, match="'no_skips' hosts no skip paths"):
        describe_parts({"name": "no_skips", "spatial_dims": 2})


def test_a_model_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(UsageError, match="norm"):
        describe_parts({"name": "unet", "spatial_dims": 2, "base_channels": 4, "depth": 2, "norm": "bach"})
