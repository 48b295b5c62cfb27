"""The loss of UNet++'s official code, against its definition on probabilities, as Keras computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.losses import IGNORE, build_loss


def keras_bce_dice(p: np.ndarray, y: np.ndarray) -> float:
    """0.5 mean BCE - Dice of the flattened batch, smooth 1; p and y (B, K, *S)."""
    p, y = p.astype(np.float64), y.astype(np.float64)
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    entropy = -(y * np.log(clipped) + (1 - y) * np.log(1 - clipped)).mean()
    return 0.5 * entropy - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def example(channels: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(channels)
    logits = 2 * torch.randn(2, channels, *shape, generator=generator, dtype=dtype)
    return logits, torch.randint(0, max(2, channels), (2, 1, *shape), generator=generator)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 5)])
def test_value_is_the_definition(channels: int, shape: tuple[int, ...]) -> None:
    logits, labels = example(channels, shape)
    if channels == 1:
        p, y = logits.sigmoid(), labels
    else:
        p, y = logits.softmax(1), torch.nn.functional.one_hot(labels[:, 0], channels).movedim(-1, 1)
    expected = keras_bce_dice(p.numpy(), y.numpy())
    assert build_loss("bce_dice")(logits, labels).item() == pytest.approx(expected, rel=1e-12)


def test_the_cross_entropy_weighs_half_of_what_it_does_in_hybrid() -> None:
    logits, labels = example(1, (6, 6))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
    ours, hybrid = (build_loss(name)(logits, labels) for name in ("bce_dice", "hybrid"))
    torch.testing.assert_close(hybrid - ours, 1 + 0.5 * entropy)


@pytest.mark.parametrize("channels", [1, 3])
def test_unlabelled_voxels_count_neither_in_the_value_nor_in_the_gradient(channels: int) -> None:
    logits, labels = example(channels, (4, 6))
    labels[..., 3:] = IGNORE
    logits.requires_grad_()
    loss = build_loss("bce_dice")(logits, labels)
    loss.backward()
    torch.testing.assert_close(loss, build_loss("bce_dice")(logits[..., :3], labels[..., :3]))
    assert not logits.grad[..., 3:].any()
    assert logits.grad[..., :3].all()


@pytest.mark.parametrize("channels", [1, 3])
def test_gradient(channels: int) -> None:
    logits, labels = example(channels, (3, 2))
    labels[0, 0, 0, 0] = IGNORE
    assert torch.autograd.gradcheck(lambda x: build_loss("bce_dice")(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("channels", [1, 3])
def test_certain_logits_stay_finite_and_keep_the_gradient_of_what_is_wrong(channels: int) -> None:
    logits = torch.zeros(1, channels, 2, 2, dtype=torch.float32)
    logits[:, 0] = 200.0
    labels = torch.full((1, 1, 2, 2), 0 if channels == 1 else 2)
    loss = build_loss("bce_dice")(logits.requires_grad_(), labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad[:, 0].gt(0).all()


def test_a_perfect_prediction_reaches_minus_one() -> None:
    labels = torch.zeros(1, 1, 8, 8, dtype=torch.int64)
    labels[..., 2:5, 2:6] = 1
    assert build_loss("bce_dice")(200.0 * (2 * labels - 1), labels).item() == pytest.approx(-1, abs=1e-6)
