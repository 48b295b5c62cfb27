"""Experiments named after a paper train as its code does: optimizer, schedule, loss, averaging, clipping, length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medseg.compose import compose
from medseg.models import create_model
from medseg.targets import build_target
from medseg.training.optimizers import make_optimizer
from medseg.training.schedule import learning_rate_factor
from medseg.training.setup import make_budget

ADAM = ("unetpp_paper", "att_swin_unet_isic", "barlow_swin_paper", "hybridgnet_paper")
KERAS = ("unetpp_paper", "barlow_swin_paper")
RATES = {"unetpp_paper": 3e-4, "att_swin_unet_isic": 1e-4, "barlow_swin_paper": 1e-3, "hybridgnet_paper": 1e-4}


def settings(name: str) -> dict[str, Any]:
    return compose("train", [f"experiment={name}"])


@pytest.mark.parametrize("name", ADAM)
def test_papers_with_adam_have_neither_warm_up_nor_average_nor_clipping(name: str) -> None:
    config = settings(name)
    network = torch.nn.Conv2d(1, 2, 3)
    optimizer = make_optimizer(network, config["optimizer"])
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == RATES[name]
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == (1e-7 if name in KERAS else 1e-8)
    assert learning_rate_factor(0.0, config["optimizer"]["schedule"], config["optimizer"]["warmup"]) == 1
    assert not config["trainer"]["ema"]
    assert not config["trainer"]["gradient_clip"]


@pytest.mark.parametrize("name", [name for name in ADAM if name != "hybridgnet_paper"])
def test_their_rate_is_constant_and_nothing_is_decayed(name: str) -> None:
    optimizer = settings(name)["optimizer"]
    factors = {learning_rate_factor(p / 10, optimizer["schedule"], optimizer["warmup"]) for p in range(11)}
    assert factors == {1.0}
    groups = make_optimizer(torch.nn.Conv2d(1, 2, 3), optimizer).param_groups
    assert [group["weight_decay"] for group in groups] == [0, 0]


def test_hybridgnet_paper_trains_110000_steps_and_lowers_its_rate_every_fifty_epochs() -> None:
    config = settings("hybridgnet_paper")
    assert make_budget(config["trainer"]).max_steps == 2500 * -(-174 // config["plan"]["batch_size"]) == 110_000
    assert config["optimizer"]["schedule"] == "step"
    assert config["optimizer"]["weight_decay"] == 1e-5


def test_transdae_synapse_clips_no_gradient() -> None:
    config = settings("transdae_synapse")
    assert not config["trainer"]["gradient_clip"]
    assert make_budget(config["trainer"]).max_steps == 400 * 93


def test_unetpp_paper_trains_four_heads_of_its_layers_with_half_the_cross_entropy_minus_dice() -> None:
    config = settings("unetpp_paper")
    labels = {"background": 0, "cell": 1}
    target = build_target({"name": "exclusive", "labels": labels, "binary": True, "loss": config["target"]["loss"]})
    model = create_model(**{**config["model"], "base_channels": 2, "skips": None, "in_channels": 1, "out_channels": 1})
    heads = [head.double() for head in model.train()(torch.randn(1, 1, 16, 16))]
    label = torch.randint(0, 2, (1, 1, 16, 16))
    losses = []
    for head in heads:
        p, y = head.sigmoid(), label.double()
        dice = (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        losses.append(0.5 * torch.nn.functional.binary_cross_entropy_with_logits(head, y) - dice)
    assert len(heads) == 4
    torch.testing.assert_close(target.loss(heads, target.encode(label)), torch.stack(losses).mean())
