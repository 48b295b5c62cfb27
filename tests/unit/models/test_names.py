"""One namespace: a name is one network, on the command line, in Python and in the table of ``medseg models``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medseg.compose import load_config, options
from medseg.models import MODELS, create_model
from medseg.models.table import describe

PUBLISHED = {"unetpp": 9_041_700, "unetpp_batchnorm": 9_162_753, "unet_classic": 7_759_521, "unet_wide": 9_282_246}

NARROW = dict.fromkeys(("unet", "unet_resenc", "unetpp_nnunet"), ("base_channels",))


def test_every_name_has_a_config_and_every_config_is_a_name() -> None:
    assert options("model") == MODELS.names()


@pytest.mark.parametrize("name", MODELS.names())
def test_the_config_of_a_name_is_the_network_of_that_name(name: str) -> None:
    settings: dict[str, Any] = {
        key: value for key, value in load_config(f"model/{name}.yaml").items() if value is not None
    }
    assert settings["name"] == name
    narrow = {key: settings[key] for key in NARROW.get(name, ())}  # for a CPU; said in the config
    with torch.device("meta"):
        own, listed = create_model(name, **narrow), create_model(**settings)
    assert [(key, value.shape) for key, value in listed.state_dict().items()] == [
        (key, value.shape) for key, value in own.state_dict().items()
    ]
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in create_model(name).parameters())
    assert describe(name).parameters == count == PUBLISHED.get(name, count)
