"""``medseg models``."""

from __future__ import annotations

import pytest

from medseg.models import models_command
from medseg.models.table import describe


def test_card_is_read_from_the_model() -> None:
    card = describe("unetpp")
    assert card.parameters == 9_041_700
    assert card.spatial_dims == (2, 3)
    assert "1912.05074" in card.source
    assert card.summary == "UNet++ with the layers of the official code."


def test_command_prints_what_the_pattern_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    models_command({"pattern": "unet_c*"})
    printed = capsys.readouterr().out
    assert "unet_classic" in printed
    assert "7,759,521" in printed
    assert "unetpp" not in printed
