"""Exclusive classes: label values to channels and back, ignored voxels, unknown values, heads of other resolutions."""

from __future__ import annotations

import pytest
import torch

from medseg.errors import BadLabels, UsageError
from medseg.losses import IGNORE
from medseg.targets import ExclusiveClasses, build_target
from medseg.targets.base import head_weights, resize_labels

SPARSE = {"background": 0, "liver": 7, "tumour": 3}


def label(*values: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).view(1, 1, 1, -1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_values_become_channels_by_size_and_return(dtype: torch.dtype) -> None:
    target = ExclusiveClasses(labels=SPARSE, ignore_label=255 if dtype == torch.uint8 else 300)
    values = label(0, 3, 7, 0, dtype=dtype)
    encoded = target.encode(values)
    assert encoded.flatten().tolist() == [0, 1, 2, 0]
    assert encoded.dtype == torch.int64
    probabilities = torch.nn.functional.one_hot(encoded[:, 0], 3).movedim(-1, 1).float()
    assert target.decode(probabilities).tolist() == values[:, 0].tolist()


def test_ignored_voxels_are_marked() -> None:
    assert ExclusiveClasses(labels=SPARSE, ignore_label=9).encode(label(9, 7)).flatten().tolist() == [IGNORE, 2]


@pytest.mark.parametrize(("labels", "ignore"), [(SPARSE, None), (SPARSE, 9), ({"background": 0, "organ": 1}, None)])
@pytest.mark.parametrize("bad", [2, 5, 200])
def test_unknown_values_are_named(labels: dict[str, int], ignore: int | None, bad: int) -> None:
    with pytest.raises(BadLabels, match=rf"label values \[{bad}\] are unknown") as error:
        ExclusiveClasses(labels=labels, ignore_label=ignore).encode(label(0, bad))
    assert error.value.exit_code == 3


def test_negative_values_are_named() -> None:
    with pytest.raises(BadLabels, match=r"\[-1\]"):
        ExclusiveClasses(labels=SPARSE).encode(label(-1, 0, dtype=torch.int16))


@pytest.mark.parametrize(("largest", "dtype"), [(255, torch.uint8), (256, torch.int16), (40_000, torch.int32)])
def test_decode_takes_the_smallest_type(largest: int, dtype: torch.dtype) -> None:
    target = ExclusiveClasses(labels={"background": 0, "organ": largest})
    decoded = target.decode(torch.tensor([0.2, 0.8]).view(1, 2, 1, 1))
    assert decoded.dtype == dtype
    assert decoded.item() == largest


def test_binary_is_one_sigmoid_channel() -> None:
    target = ExclusiveClasses(labels={"background": 0, "lesion": 4}, binary=True)
    assert target.out_channels == 1
    logits = torch.tensor([-1.0, 0.0, 3.0]).view(1, 1, 1, 3)
    assert target.decode(target.activate(logits)).flatten().tolist() == [0, 4, 4]
    assert target.encode(label(0, 4)).flatten().tolist() == [0, 1]


def test_activation_is_float32_and_sums_to_one() -> None:
    p = ExclusiveClasses(labels=SPARSE).activate(torch.randn(2, 3, 4, 4).bfloat16())
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.sum(1), torch.ones(2, 4, 4))


def test_equal_heads_are_averaged_and_smaller_ones_halved() -> None:
    full, half, quarter = (torch.zeros(1, 2, s, s) for s in (8, 4, 2))
    assert head_weights([full, full, full, full]) == [0.25] * 4
    assert head_weights([full, half, quarter]) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert head_weights([full, half], [3, 1]) == [0.75, 0.25]
    with pytest.raises(UsageError, match="3 values but the model has 2 heads"):
        head_weights([full, half], [1, 1, 1])


def test_loss_of_heads_is_their_weighted_mean() -> None:
    target = ExclusiveClasses(labels={"background": 0, "organ": 1}, loss="cross_entropy")
    encoded = torch.randint(0, 2, (2, 1, 8, 8))
    heads = [torch.randn(2, 2, 8, 8), torch.randn(2, 2, 4, 4)]
    expected = 2 / 3 * target.loss(heads[0], encoded) + 1 / 3 * target.loss(heads[1], resize_labels(encoded, (4, 4)))
    torch.testing.assert_close(target.loss(heads, encoded), expected)


@pytest.mark.parametrize("size", [(4, 4), (3, 8), (16, 5)])
def test_resize_is_torchs_nearest_exact(size: tuple[int, int]) -> None:
    labels = torch.randint(0, 9, (2, 1, 8, 8))
    expected = torch.nn.functional.interpolate(labels.float(), size, mode="nearest-exact").long()
    assert torch.equal(resize_labels(labels, size), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": {"background": 0}}, "two or more"),
        ({"labels": {"background": 0, "organ": 0}}, "different"),
        ({"labels": SPARSE, "ignore_label": 7}, "different"),
        ({"labels": {"background": 0, "organ": 10**9}}, r"0\.\.65535"),
        ({"labels": SPARSE, "binary": True}, "needs exactly 2"),
        ({"labels": SPARSE, "loss": "dice_cee"}, "did you mean 'dice_ce'"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExclusiveClasses(**arguments)


def test_description_without_or_with_wrong_name_is_refused() -> None:
    with pytest.raises(UsageError, match="has no 'name'"):
        build_target({"labels": SPARSE})
    with pytest.raises(UsageError, match="did you mean 'exclusive'"):
        build_target({"name": "exclusiv", "labels": SPARSE})


def test_a_binary_target_may_decode_from_another_threshold() -> None:
    target = ExclusiveClasses(labels={"background": 0, "lesion": 255}, binary=True, threshold=0.43)
    assert target.decode(torch.tensor([0.42, 0.43, 0.6]).view(1, 1, 3)).tolist() == [[0, 255, 255]]
    assert build_target(target.to_dict()).to_dict()["threshold"] == 0.43
    with pytest.raises(UsageError, match="threshold"):
        ExclusiveClasses(labels={"background": 0, "a": 1}, threshold=0.3)
