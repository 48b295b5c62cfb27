"""Barlow Twins: values by hand, identical views, the floor that a small batch sets, constant dimensions."""

from __future__ import annotations

import pytest
import torch

from medseg.losses import LOSSES
from medseg.losses.barlow_twins import barlow_twins_loss, correlation_loss, cross_correlation


def test_the_identity_costs_nothing() -> None:
    assert correlation_loss(torch.eye(7)).item() == 0


def test_three_dimensions_by_hand() -> None:
    correlation = torch.tensor([[1.0, 0.5, 0.0], [-0.5, 0.8, 0.1], [0.0, 0.2, 1.0]])
    off_diagonal = 0.25 + 0.25 + 0.01 + 0.04
    expected = 0.2**2 + 5e-3 * off_diagonal
    assert correlation_loss(correlation).item() == pytest.approx(expected)
    assert correlation_loss(correlation, redundancy=1.0).item() == pytest.approx(0.04 + off_diagonal)


def test_correlation_is_that_of_numpy() -> None:
    first, second = torch.randn(2, 20, 4, dtype=torch.float64).unbind(0)
    expected = torch.corrcoef(torch.cat((first, second), dim=1).mT)[:4, 4:]
    torch.testing.assert_close(cross_correlation(first, second, eps=0.0), expected)


def test_identical_independent_views_of_a_large_batch_cost_almost_nothing() -> None:
    torch.manual_seed(0)
    z = torch.randn(20_000, 8) * torch.arange(1, 9) + 3  # scale and mean of a dimension do not matter
    assert barlow_twins_loss(z, z).item() < 1e-4
    assert barlow_twins_loss(z, z.roll(1, 0)).item() == pytest.approx(8, rel=0.05)


def test_a_batch_of_16_cannot_decorrelate_256_dimensions() -> None:
    torch.manual_seed(0)
    floor = 5e-3 * (256**2 / 15 - 256)
    best = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    for z in (torch.randn(16, 256, dtype=torch.float64), best.repeat(1, 16)):
        correlation = cross_correlation(z, z, eps=0.0)
        assert torch.linalg.matrix_rank(correlation) <= 15
        assert barlow_twins_loss(z, z, eps=0.0).item() >= floor - 1e-9
    assert floor == pytest.approx(20.6, abs=0.05)


def test_a_constant_dimension_gives_zero_and_finite_gradients() -> None:
    z = torch.randn(8, 3)
    z[:, 1] = 2.0
    z.requires_grad_()
    loss = barlow_twins_loss(z, z)
    loss.backward()
    assert cross_correlation(z, z)[1].abs().max() == 0
    assert loss.item() >= 1
    assert z.grad.isfinite().all()


def test_bfloat16_embeddings_are_compared_in_float32() -> None:
    z = torch.randn(64, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = barlow_twins_loss(z, z)
    torch.testing.assert_close(rounded, barlow_twins_loss(z.float(), z.float()))


def test_it_is_no_loss_of_logits() -> None:
    assert "barlow_twins" not in LOSSES.names()
