"""Optimisers and the moving average."""

import pytest
import torch
from torch import nn

from medseg.errors import UsageError
from medseg.training.ema import WeightAverage
from medseg.training.optimizers import make_optimizer


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam"])
def test_norms_and_biases_are_not_decayed(name):
    model = network()
    optimizer = make_optimizer(model, {"name": name, "lr": 0.1, "weight_decay": 0.5, "schedule": "poly", "warmup": 0})
    weights, others = optimizer.param_groups
    assert weights["params"] == [model[0].weight]
    assert (weights["weight_decay"], others["weight_decay"]) == (0.5, 0)
    assert len(others["params"]) == 3


def test_own_arguments_pass_through_and_unknown_ones_are_refused():
    optimizer = make_optimizer(network(), {"name": "sgd", "lr": 0.1, "momentum": 0.99, "nesterov": True})
    assert optimizer.defaults["nesterov"]
    with pytest.raises(UsageError, match="sgd"):
        make_optimizer(network(), {"name": "sgd", "lr": 0.1, "beta": 1})
    with pytest.raises(UsageError, match="did you mean 'adamw'"):
        make_optimizer(network(), {"name": "adamww", "lr": 0.1})


def test_average_follows_with_a_decay_that_grows():
    model = network()
    average = WeightAverage(model, decay=0.9)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 3
    average.update(model)  # first decay is 1/10
    torch.testing.assert_close(average.network[0].weight, start + 0.9)
    torch.testing.assert_close(average.network[1].running_mean, model[1].running_mean)
    for _ in range(400):
        average.update(model)
    torch.testing.assert_close(average.network[0].weight, model[0].weight)


def test_average_stays_in_evaluation_and_out_of_the_optimiser():
    average = WeightAverage(network(), 0.9).train()
    assert not average.network.training
    assert not any(p.requires_grad for p in average.parameters())
    assert "updates" in average.state_dict()
