"""The landmarks target: its loss by hand, points and masks into each other, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.blocks.graph import pooling
from medseg.errors import BadLabels, UsageError
from medseg.evaluation import evaluate_arrays
from medseg.evaluation.topology import betti_numbers
from medseg.models.hybridgnet import GraphOutput
from medseg.targets import Landmarks
from medseg.targets.contours import Structure, paint, resample_ring, structure_mask
from medseg.targets.landmarks import kl_divergence

LABELS = {"background": 0, "lung": 1, "heart": 2}
PLACES = {  # centre and radii, in units of the image
    "right lung": (0.3, 0.5, 0.15, 0.3),
    "left lung": (0.7, 0.5, 0.15, 0.3),
    "heart": (0.55, 0.62, 0.12, 0.12),
    "right clavicle": (0.28, 0.14, 0.15, 0.03),
    "left clavicle": (0.72, 0.14, 0.15, 0.03),
}
COUNTS = {"right lung": 44, "left lung": 50, "heart": 26, "right clavicle": 23, "left clavicle": 23}


def ellipse(name: str, count: int) -> np.ndarray:
    """Clockwise on the screen from the topmost point."""
    x, y, a, b = PLACES[name]
    angle = 2 * np.pi * np.arange(count) / count
    return np.stack([x + a * np.sin(angle), y - b * np.cos(angle)], axis=1).astype(np.float32)


def organs(*names: str) -> tuple[Landmarks, torch.Tensor]:
    counts = {name: COUNTS[name] for name in names}
    labels = {"background": 0, **{name: i + 1 for i, name in enumerate(names)}}
    points = np.concatenate([ellipse(name, count) for name, count in counts.items()])
    return Landmarks(structures=counts, labels=labels), torch.from_numpy(points)[None]


def two_lungs(**settings: object) -> Landmarks:
    values = {"right lung": 1, "left lung": 1}
    return Landmarks(structures={"right lung": 4, "left lung": 5}, labels=LABELS, values=values, **settings)


def test_loss_by_hand() -> None:
    target, generator = two_lungs(kl_weight=0.1), torch.Generator().manual_seed(0)
    wanted, points, fine, coarse = (torch.rand(2, n, 2, generator=generator) for n in (9, 9, 9, 5))
    mean, log_variance = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    expected = (points - wanted).square().mean() + (fine - wanted).square().mean()
    expected = expected + (coarse - pooling([4, 5]) @ wanted).square().mean() + 0.1 * kl_divergence(mean, log_variance)
    found = target.loss(GraphOutput(points, (coarse, fine), mean, log_variance), target.encode(wanted))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(target.loss(points, wanted), (points - wanted).square().mean())


def test_kl_is_a_mean_and_zero_for_a_standard_normal() -> None:
    assert kl_divergence(torch.zeros(4, 8), torch.zeros(4, 8)) == 0
    torch.testing.assert_close(kl_divergence(torch.full((2, 64), 2.0), torch.zeros(2, 64)), torch.tensor(2.0))


def test_points_of_a_missing_structure_are_not_learnt() -> None:
    target = two_lungs()
    wanted = torch.rand(1, 9, 2)
    wanted[:, :4] = torch.nan
    points, coarse = torch.rand(1, 9, 2, requires_grad=True), torch.rand(1, 5, 2)
    loss = target.loss(GraphOutput(points, (coarse,), torch.zeros(1, 2), torch.zeros(1, 2)), wanted)
    (gradient,) = torch.autograd.grad(loss, points)
    assert loss.isfinite()
    assert not gradient[:, :4].any()
    assert gradient[:, 4:].all()


def test_area_of_a_triangle() -> None:
    structure = Structure("a", 0, 3, 1)
    mask = structure_mask(np.array([[0, 0], [60.5, 0], [0, 60.5]]), structure, (64, 64))
    assert mask.sum() == 61 * 62 / 2  # pixels with column + row <= 60, the outline included
    assert not paint(np.full((3, 2), 1000.0), [structure], (64, 64)).any()


@pytest.mark.parametrize("names", [list(COUNTS)[:3], list(COUNTS)], ids=["120 points", "166 points"])
def test_layouts_of_the_paper_become_masks_and_back(names: list[str]) -> None:
    target, points = organs(*names)
    assert target.total == {3: 120, 5: 166}[len(names)]
    masks = target.decode(points, (256, 320))[0].numpy()
    assert set(np.unique(masks)) == set(range(len(names) + 1))
    assert masks[int(0.62 * 256), int(0.62 * 320)] == 3  # the heart covers the left lung
    from_masks = Landmarks(structures=target.counts, labels=target.labels, from_masks=True)
    found = from_masks.encode(torch.from_numpy(masks)[None, None])
    again = target.decode(found, (256, 320))[0].numpy()
    scores = evaluate_arrays(again, masks, spacing=(1, 1), labels=list(range(1, len(names) + 1)), metrics=["dice"])
    assert min(score["dice"] for score in scores.values()) > 0.93
    for structure in target.structures[:1]:  # what nothing covers: it begins at the top and runs clockwise
        top, right, _, left = points[0, structure.members][:: structure.count // 4]
        again = found[0, structure.members]
        assert (again[0] - top).abs().max() < 0.01
        assert (again[structure.count // 4] - right).abs().max() < 0.01
        assert (again[3 * structure.count // 4] - left).abs().max() < 0.02


def test_structures_that_share_a_value_are_told_apart_by_their_side() -> None:
    target = two_lungs(from_masks=True)
    label = torch.zeros(2, 1, 40, 60, dtype=torch.uint8)
    label[:, :, 10:30, 5:20], label[0, :, 12:32, 40:55] = 1, 1
    label[0, :, 0:2, 0:2] = 1  # a speck is smaller than both
    points = target.encode(label)
    assert points[0, :4, 0].max() < 0.5 < points[0, 4:, 0].min()
    assert points[1].isnan().all(), "with one lung nobody can tell which"


def test_the_largest_piece_is_that_of_the_largest_area() -> None:
    label = torch.zeros(1, 1, 40, 100, dtype=torch.uint8)
    label[..., 5:25, 5:25], label[..., 38:40, 2:98] = 1, 1
    target = Landmarks(structures={"lung": 8}, labels={"background": 0, "lung": 1}, from_masks=True)
    assert target.encode(label)[..., 0].max() < 0.3, "the stripe has the longer outline"


@given(st.integers(3, 60), st.booleans(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_rings_keep_start_and_direction(count: int, reverse: bool, shift: int) -> None:
    outline = 100 * ellipse("heart", 100)
    turned = np.roll(outline[::-1] if reverse else outline, shift, axis=0)
    np.testing.assert_allclose(resample_ring(turned, count), resample_ring(outline, count), atol=1e-3)
    first, second = resample_ring(outline, count)[:2]
    assert first[1] < outline[:, 1].mean()
    assert abs(first[0] - outline[:, 0].mean()) < 0.5
    assert second[0] > first[0], "clockwise on the screen begins to the right"


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_whatever_the_points_a_structure_is_one_piece_without_holes(seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-10, 74, (9, 2))
    mask = structure_mask(points + 20, Structure("a", 0, 9, 1), (110, 110))
    assert betti_numbers(mask) == (1, 0, 0)


def test_edges_that_are_no_ring_are_drawn_as_lines() -> None:
    target = Landmarks(structures={"spine": 3}, labels={"background": 0, "spine": 1}, edges=[[0, 1], [1, 2]])
    points = torch.tensor([[[0.5, 0.1], [0.5, 0.5], [0.5, 0.9]]])
    mask = target.decode(points, (20, 20))[0]
    assert mask[:, 10].sum() == 17
    assert mask.sum() == 17
    assert target.model_arguments() == {"structures": [3], "edges": [[0, 1], [1, 2]]}


def test_a_single_label_is_that_of_every_structure() -> None:
    target = Landmarks(structures={"a": 3, "b": 3}, labels={"background": 0, "foreground": 5})
    assert [structure.value for structure in target.structures] == [5, 5]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"structures": None}, "needs the number of points"),
        ({"structures": {"lung": 0}}, "needs a point"),
        ({"structures": {"liver": 5}}, "'liver' has no label value"),
        ({"values": {"lungs": 1}}, "'lungs' has no label value"),
        ({"values": {"lung": 7}}, "'lung' has no label value"),
        ({"edges": [[0, 9]]}, "edge"),
        ({"structures": {"lung": 3, "heart": 3}, "edges": [[0, 4]]}, "leaves structure 'lung'"),
        ({"ignore_label": 9}, "no ignore label"),
    ],
)
def test_settings_that_cannot_be(settings: dict, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        Landmarks(**{"structures": {"lung": 5}, "labels": LABELS, **settings})


def test_points_with_a_gradient_are_decoded() -> None:
    assert two_lungs().decode(torch.rand(1, 9, 2, requires_grad=True), (8, 8)).shape == (1, 8, 8)


@pytest.mark.parametrize(("value", "dtype"), [(255, torch.uint8), (32767, torch.int16), (65535, torch.int32)])
def test_any_label_value_is_decoded(value: int, dtype: torch.dtype) -> None:
    target = Landmarks(structures={"a": 3}, labels={"background": 0, "a": value})
    labels = target.decode(torch.tensor([[[0.0, 0.0], [0.9, 0.0], [0.0, 0.9]]]), (8, 8))
    assert (labels.dtype, int(labels.max())) == (dtype, value)


def test_points_that_cannot_be() -> None:
    target = two_lungs()
    with pytest.raises(BadLabels, match=r"the cases have 8 landmarks \(expected 9: right lung 4, left lung 5\)"):
        target.encode(torch.rand(1, 8, 2))
    with pytest.raises(BadLabels, match="not finite"):
        target.encode(torch.full((1, 9, 2), torch.nan))
    with pytest.raises(UsageError, match="of a given size"):
        target.decode(torch.rand(1, 9, 2))
