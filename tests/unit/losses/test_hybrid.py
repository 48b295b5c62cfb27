"""UNet++'s hybrid loss, literal and code-like, and the guard against the literal form's trap."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.errors import UsageError
from medseg.losses import build_loss


def test_pixel_mode_is_the_formula_read_literally() -> None:
    logits, labels = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randint(0, 3, (2, 1, 5, 4))
    p, y = logits.softmax(1), nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1)
    pixels = labels.numel()
    expected = -(y * p.log() + 2 * y * p / (y**2 + p**2)).sum() / pixels
    torch.testing.assert_close(build_loss({"name": "hybrid", "dice_mode": "pixel"})(logits, labels), expected)


def test_the_trap_everything_foreground_is_optimal_with_one_channel() -> None:
    y = torch.tensor([1.0, 0.0, 0.0])

    def literal(p: torch.Tensor) -> torch.Tensor:
        return -(y * p.log() + 2 * y * p / (y**2 + p**2)).mean()

    right, all_foreground = torch.tensor([1.0, 1e-6, 1e-6]), torch.ones(3)
    torch.testing.assert_close(literal(right), literal(all_foreground))


def test_pixel_mode_refuses_one_channel() -> None:
    with pytest.raises(UsageError, match="everything is foreground"):
        build_loss({"name": "hybrid", "dice_mode": "pixel"})(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4).long())


def test_pixel_mode_gradcheck() -> None:
    logits = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    labels, loss = torch.randint(-1, 2, (1, 1, 3, 3)), build_loss({"name": "hybrid", "dice_mode": "pixel"})
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits)


def test_sum_mode_is_dice_of_batch_sums_with_smooth_one() -> None:
    logits, labels = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 1, 4, 4))
    p, y = logits.sigmoid(), labels.float()
    expected = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1) + nn.functional.binary_cross_entropy(p, y)
    torch.testing.assert_close(build_loss("hybrid")(logits, labels), expected)


def test_unknown_mode_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'pixel'"):
        build_loss({"name": "hybrid", "dice_mode": "pixels"})
