"""``medseg models``."""

from __future__ import annotations

import pytest

from medseg.errors import UsageError
from medseg.models import create_model, models_command
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


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("barlow_swin", {"num_heads": 0}, "num_heads is 0 .*at least 1"),
        ("barlow_swin", {"dropout": 2}, "dropout is 2 .*0 to 1"),
        ("barlow_swin", {"image_size": [32]}, "cannot be built with image_size=.32.: not enough values"),
        ("att_swin_unet", {"drop_path": 1.5}, "drop_path is 1.5"),
        ("att_swin_unet", {"embed_dim": 0}, "embed_dim is 0"),
        ("unet", {"spatial_dims": 2, "out_channels": 1.5}, "out_channels is 1.5"),
    ],
)
def test_numbers_that_no_network_has(name, settings, message) -> None:
    with pytest.raises(UsageError, match=message):
        create_model(name, **settings)
