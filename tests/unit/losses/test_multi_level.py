"""Multi-level activation: nesting, plateaus, and losses whose gradients survive the tails."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from medseg.errors import UsageError
from medseg.losses import IGNORE
from medseg.losses.multi_level import TERMS, MultiLevel, make_multi_level_loss

LEVELS = [1, 2, 3, 5]


def logits_and_levels(count: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    x = scale * torch.randn((2, 1, 5, 6), generator=generator, dtype=torch.float64)
    return x, torch.randint(0, count + 1, x.shape, generator=generator)


def test_thresholds_are_symmetric_and_h_apart() -> None:
    assert MultiLevel(1, h=0.5).thresholds == [0.0]
    assert MultiLevel(2, h=0.5).thresholds == [-0.25, 0.25]
    assert MultiLevel(3, h=0.5).thresholds == [-0.5, 0.0, 0.5]


@settings(max_examples=50, deadline=None)
@given(
    levels=st.integers(1, 6),
    k=st.floats(0.5, 50),
    h=st.floats(0.05, 3),
    values=st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=20),
)
def test_steps_are_nested_for_any_logit(levels: int, k: float, h: float, values: list[float]) -> None:
    s = MultiLevel(levels, k, h).steps(torch.tensor(values).view(1, 1, -1)).sigmoid()
    assert (s.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("count", LEVELS)
def test_class_probabilities_are_differences_that_sum_to_one(count: int) -> None:
    activation = MultiLevel(count)
    x, _ = logits_and_levels(count)
    p, s = activation.class_log_probabilities(x).exp(), activation.steps(x).sigmoid()
    torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))
    edges = torch.cat([torch.ones_like(x), s, torch.zeros_like(x)], 1)
    torch.testing.assert_close(p, edges[:, :-1] - edges[:, 1:])
    assert (p >= 0).all()


def test_plateaus_are_whole_numbers() -> None:
    activation = MultiLevel(3)
    x = torch.tensor([-5.0, -0.25, 0.25, 5.0], dtype=torch.float64)
    a = activation.steps(x.view(1, 1, -1)).sigmoid().sum(1).flatten()
    assert a.tolist() == pytest.approx([0, 1.0006, 1.9994, 3], abs=1e-4)


@pytest.mark.parametrize("count", LEVELS)
def test_number_of_plateaus_passed_is_number_of_thresholds_passed(count: int) -> None:
    """At k = 10 a is j - 1/2 within 0.01 of threshold j, and strictly between thresholds both counts agree."""
    activation = MultiLevel(count)
    x, _ = logits_and_levels(count)
    near = (x - torch.tensor(activation.thresholds, dtype=x.dtype).view(1, -1, 1, 1)).abs().amin(1) < 0.01
    a = activation.steps(x).sigmoid().sum(1, keepdim=True)
    by_a = sum((a > j - 0.5).long() for j in range(1, count + 1))
    by_x = sum((x > t).long() for t in activation.thresholds)
    assert torch.equal(by_a[~near[:, None]], by_x[~near[:, None]])


def product_cross_entropy(x: Tensor, level: Tensor, activation: MultiLevel) -> Tensor:
    """The form with s_j (1 - s_(j+1)) instead of differences, which the paper may mean."""
    steps, certain = activation.steps(x), torch.ones_like(x)
    upper, lower = torch.cat([certain, steps.sigmoid()], 1), torch.cat([(-steps).sigmoid(), certain], 1)
    return -(upper * lower).log().gather(1, level).mean()


@pytest.mark.parametrize("count", LEVELS)
def test_product_and_difference_have_equal_gradients(count: int) -> None:
    activation = MultiLevel(count)
    x, level = logits_and_levels(count)
    x.requires_grad_()
    ours = make_multi_level_loss("modified_ce", activation)(x, level)
    other = product_cross_entropy(x, level, activation)
    first, second = (torch.autograd.grad(loss, x)[0] for loss in (ours, other))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)
    between = (level > 0) & (level < count)
    gap = -math.log(1 - math.exp(-activation.k * activation.h)) * between.double().mean()
    torch.testing.assert_close(ours - other, gap)


@pytest.mark.parametrize("count", LEVELS)
@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_those_of_finite_differences(name: str, count: int) -> None:
    x, level = logits_and_levels(count, 0.3)
    level[0, 0, 0, :3] = IGNORE
    loss = make_multi_level_loss(name, MultiLevel(count, k=4.0), [1 + 0.5 * c for c in range(count + 1)])
    assert torch.autograd.gradcheck(lambda x: loss(x, level), x.requires_grad_())


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("size", [50.0, -50.0, 1e4, -1e4])
def test_losses_and_gradients_are_finite_far_away(name: str, size: float) -> None:
    x = torch.full((1, 1, 2, 2), size, requires_grad=True)
    level = torch.tensor([[[[0, 1], [2, 3]]]])
    loss = make_multi_level_loss(name, MultiLevel(3))(x, level)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_modified_cross_entropy_never_loses_its_gradient_and_the_others_do() -> None:
    level = torch.full((1, 1, 1, 1), 3)
    slopes = {}
    for name in ("modified_ce", "quadratic"):
        x = torch.full((1, 1, 1, 1), -4.0, dtype=torch.float64, requires_grad=True)
        slopes[name] = float(torch.autograd.grad(make_multi_level_loss(name, MultiLevel(3))(x, level), x)[0])
    assert slopes["modified_ce"] == pytest.approx(-10.0)
    assert abs(slopes["quadratic"]) < 1e-12


def test_normalised_cross_entropy_is_that_of_a_over_l() -> None:
    activation = MultiLevel(3)
    x, level = logits_and_levels(3)
    share = activation.steps(x).sigmoid().mean(1, keepdim=True)
    expected = functional.binary_cross_entropy(share, level.double() / 3)
    torch.testing.assert_close(make_multi_level_loss("normalised_ce", activation)(x, level), expected)


@pytest.mark.parametrize("name", TERMS)
def test_ignored_voxels_do_not_count(name: str) -> None:
    x, level = logits_and_levels(3)
    loss = make_multi_level_loss(name, MultiLevel(3))
    ignored = level.clone()
    ignored[:, :, 2:] = IGNORE
    torch.testing.assert_close(loss(x, ignored), loss(x[:, :, :2], level[:, :, :2]))
    assert loss(x, torch.full_like(level, IGNORE)) == 0


def test_class_weights_are_those_of_a_weighted_mean() -> None:
    activation = MultiLevel(2)
    x, level = logits_and_levels(2)
    log_p = activation.class_log_probabilities(x)
    weights = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    expected = functional.nll_loss(log_p, level[:, 0], weights)
    torch.testing.assert_close(make_multi_level_loss("modified_ce", activation, [1, 0, 3])(x, level), expected)


def test_terms_add_up() -> None:
    x, level = logits_and_levels(2)
    activation = MultiLevel(2)
    ce, dice = (make_multi_level_loss(name, activation)(x, level) for name in ("modified_ce", "region_dice"))
    both = make_multi_level_loss({"modified_ce": 2, "region_dice": 0.5}, activation)(x, level)
    torch.testing.assert_close(both, 2 * ce + 0.5 * dice)


@pytest.mark.parametrize(
    ("loss", "weights", "told"),
    [
        ("modified_c", None, "did you mean 'modified_ce'"),
        ({"quadratic": -1}, None, "weight -1"),
        ({"quadratic": 0}, None, "no term"),
        ("quadratic", [1, 2], "expected 3"),
        ("quadratic", [0, 0, 0], "expected 3"),
    ],
)
def test_losses_that_cannot_be_are_refused(loss: object, weights: list[float] | None, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make_multi_level_loss(loss, MultiLevel(2), weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"levels": 0}, {"levels": 2, "k": 0}, {"levels": 2, "h": -1}])
def test_activations_that_cannot_be_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="multi-level activation"):
        MultiLevel(**bad)  # type: ignore[arg-type]
