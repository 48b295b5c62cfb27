"""Dice + cross-entropy: its definition by hand, its fused gradient, MONAI's value, ignored voxels, precision."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.losses import IGNORE, LOSSES, build_loss
from medseg.losses.cross_entropy import cross_entropy
from medseg.losses.dice import soft_dice_loss
from medseg.losses.dice_ce import Options, make_dice_ce, plain_dice_ce

pytestmark = pytest.mark.numerics

SETTINGS = [
    dict(zip(("batch_dice", "include_background"), v, strict=True)) for v in itertools.product((True, False), repeat=2)
]


def example(channels: int = 3, *, ignore: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, channels, 4, 3, 5), generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(IGNORE if ignore else 0, max(channels, 2), (2, 1, 4, 3, 5), generator=generator)
    return logits, labels


def by_hand(logits: Tensor, labels: Tensor, *, batch_dice: bool, include_background: bool) -> Tensor:
    """The formulas voxel by voxel class, over kept voxels only, without the code under test."""
    p = torch.softmax(logits, 1).movedim(1, -1)
    kept = labels[:, 0] != IGNORE
    ce = -torch.stack(
        [p[i][labels[i, 0] == k][:, k].log().sum() for i in range(len(p)) for k in range(p.shape[-1])]
    ).sum()
    groups = [list(range(len(p)))] if batch_dice else [[i] for i in range(len(p))]
    scores = []
    for group, k in itertools.product(groups, range(0 if include_background else 1, p.shape[-1])):
        y = torch.cat([(labels[i, 0] == k)[kept[i]] for i in group]).to(p)
        q = torch.cat([p[i][kept[i]][:, k] for i in group])
        scores.append((2 * (q * y).sum() + 1e-5) / (q.sum() + y.sum() + 1e-5))
    return 1 - torch.stack(scores).mean() + ce / kept.sum()


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_value_and_gradient_are_the_formulas(settings: dict, ignore: bool) -> None:
    logits, labels = example(ignore=ignore)
    loss, expected = make_dice_ce(**settings)(logits, labels), by_hand(logits, labels, **settings)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradcheck(settings: dict) -> None:
    logits, labels = example(ignore=True)
    loss = make_dice_ce(dice_weight=0.7, ce_weight=1.3, **settings)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_fused_equals_the_composition_that_defines_it(channels: int) -> None:
    logits, labels = example(channels, ignore=True)
    options = Options(2.0, 0.5, False, True, 1e-3)
    loss = make_dice_ce(**options._asdict())(logits, labels)
    expected = plain_dice_ce(logits, labels, options)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))


@pytest.mark.parametrize("settings", SETTINGS)
def test_value_is_monais(settings: dict) -> None:
    from monai.losses import DiceCELoss

    logits, labels = example(dtype=torch.float32)
    monai = DiceCELoss(
        softmax=True, to_onehot_y=True, batch=settings["batch_dice"], include_background=settings["include_background"]
    )
    expected = monai(logits, labels)
    if not settings["include_background"]:  # MONAI leaves the background out of the Dice only
        expected = monai.dice(logits, labels) + nn.functional.cross_entropy(logits, labels[:, 0])
    torch.testing.assert_close(make_dice_ce(**settings)(logits, labels), expected, rtol=1e-4, atol=1e-5)


def test_one_channel_is_a_sigmoid_with_label_one_as_foreground() -> None:
    logits, labels = example(1)
    p, y = logits.sigmoid(), labels.to(logits)
    dice = (2 * (p * y).sum() + 1e-5) / (p.sum() + y.sum() + 1e-5)
    expected = 1 - dice + nn.functional.binary_cross_entropy(p, y)
    torch.testing.assert_close(build_loss("dice_ce")(logits, labels), expected)


@pytest.mark.parametrize("name", LOSSES.names())
def test_ignored_voxels_have_no_influence(name: str) -> None:
    logits, labels = example(ignore=True)
    loss = build_loss(name)
    other = torch.where(labels == IGNORE, logits.detach() + 5 * torch.randn_like(logits), logits.detach())
    torch.testing.assert_close(loss(logits, labels), loss(other, labels))
    (gradient,) = torch.autograd.grad(loss(logits, labels), logits)
    assert not gradient.masked_select(labels == IGNORE).any()


@pytest.mark.parametrize("name", LOSSES.names())
def test_nothing_labelled_is_finite_and_pulls_nowhere(name: str) -> None:
    logits, labels = example()
    loss = build_loss(name)(logits, torch.full_like(labels, IGNORE))
    assert loss.isfinite()
    assert not torch.autograd.grad(loss, logits)[0].any()


@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_bfloat16_channels_last_logits_are_summed_in_float32(name: str, spatial_dims: int) -> None:
    exact = torch.randn(2, 3, *[8] * spatial_dims).bfloat16()
    labels = torch.randint(0, 3, (2, 1, *[8] * spatial_dims))
    layout = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    rounded = exact.clone(memory_format=layout).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = build_loss(name)(rounded, labels)
        loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, build_loss(name)(exact.float(), labels))
    exact = exact.float().requires_grad_()
    build_loss(name)(exact, labels).backward()
    assert torch.equal(rounded.grad, exact.grad.bfloat16())


@pytest.mark.parametrize("name", LOSSES.names())
def test_certainty_does_not_overflow(name: str) -> None:
    labels = torch.randint(0, 3, (1, 1, 4, 4))
    right = nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float() * 2e4 - 1e4
    for logits in (right, -right):
        logits.requires_grad_()
        loss = build_loss(name)(logits, labels)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    assert build_loss(name)(right, labels) < build_loss(name)(-right, labels)


def test_perfect_prediction_has_no_loss() -> None:
    labels = torch.randint(0, 3, (2, 1, 6, 6))
    one_hot = nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float()
    assert soft_dice_loss(one_hot, labels).item() == pytest.approx(0, abs=1e-6)
    assert cross_entropy(100 * one_hot, labels).item() == pytest.approx(0, abs=1e-6)


def test_absent_unpredicted_class_counts_as_found() -> None:
    labels = torch.zeros((1, 1, 4, 4), dtype=torch.long)
    p = torch.zeros((1, 2, 4, 4))
    p[:, 0] = 1
    assert soft_dice_loss(p, labels).item() == pytest.approx(0)


def test_batch_dice_differs_from_the_mean_over_samples() -> None:
    logits, labels = example()
    values = [
        make_dice_ce(batch_dice=b, ce_weight=0)(logits, labels * torch.tensor([0, 1]).view(2, 1, 1, 1, 1))
        for b in (True, False)
    ]
    assert values[0] != values[1]


@pytest.mark.parametrize("loss", [{"batch_dice": True}, {"name": "dice_ce", "smoth": 1}, "dice_cee"])
def test_wrong_description_is_refused(loss: str | dict) -> None:
    with pytest.raises(UsageError):
        build_loss(loss)
