"""Nested classes and regions: labels to levels and back, what is refused, containment that training cannot break."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseg.data.dataset import open_dataset
from medseg.errors import BadDataset, BadLabels, UsageError
from medseg.io import read_labels
from medseg.losses import IGNORE
from medseg.models import create_model
from medseg.targets import ExclusiveClasses, NestedClasses, Regions, build_target
from medseg.targets.base import configure_target
from medseg.training.setup import start_heads

BRATS = {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4}
SAMPLE = {"background": 0, "necrosis": 1, "oedema": 2, "non_enhancing": 3, "enhancing": 4}
TUMOUR = {"whole": ["edema", "necrosis", "enhancing"], "core": ["necrosis", "enhancing"], "enhancing": ["enhancing"]}
SAMPLE_REGIONS = {"whole": [2, 1, 3, 4], "core": [1, 3, 4], "enhancing": 4}
KINDS = [Regions, NestedClasses]


def label(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(1, 1, 1, -1)


def ideal_logits(target: Regions | NestedClasses, codes: Tensor, labels: Tensor) -> Tensor:
    """Logits of a network that is never wrong."""
    if isinstance(target, NestedClasses):
        return codes.float() * target.activation.h + target.activation.thresholds[0] - target.activation.h / 2
    inside = [sum(labels == v for v in group).bool() for group in target.classes.values()]
    return torch.cat(inside, 1).float() * 20 - 10


@pytest.mark.parametrize("levels", [["edema", "necrosis", "enhancing"], [2, 1, 4], ["2", "1", "4"]])
def test_labels_2_1_4_become_levels_and_return(levels: list[Any]) -> None:
    target = NestedClasses(labels=BRATS, levels=levels)
    labels = label(0, 2, 1, 4)
    codes = target.encode(labels)
    assert codes.flatten().tolist() == [0, 1, 2, 3]
    assert target.decode(target.activate(ideal_logits(target, codes, labels))).tolist() == labels[:, 0].tolist()
    assert list(target.classes.values()) == [(2, 1, 4), (1, 4), (4,)]
    assert list(target.classes) == ["edema+necrosis+enhancing", "necrosis+enhancing", "enhancing"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_the_numbers_of_other_labels(kind: type[Regions | NestedClasses]) -> None:
    labels = {"background": 0, "1": 2, "2": 1, "3": 4}
    regions = {"whole": ["1", "2", "3"], "core": [1, "3"], "inner": "3"}
    target = kind(labels=labels, regions=regions)
    assert list(target.classes.values()) == [(2, 1, 4), (1, 4), (4,)]
    assert build_target(target.to_dict()).classes == target.classes
    levels = NestedClasses(labels=labels, levels=["1", "2", "3"])
    assert list(build_target(levels.to_dict()).classes.values()) == [(2, 1, 4), (1, 4), (4,)]


def test_labels_0_1_2_3_are_levels() -> None:
    target = NestedClasses(labels={"out": 0, "a": 1, "b": 2, "c": 3}, levels=[1, 2, 3])
    assert target.encode(label(3, 0, 2, 1)).flatten().tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_regions_of_several_labels_return_as_their_first(kind: type[Regions | NestedClasses]) -> None:
    target = kind(labels=SAMPLE, regions=SAMPLE_REGIONS)
    labels = label(0, 1, 2, 3, 4)
    decoded = target.decode(target.activate(ideal_logits(target, target.encode(labels), labels)))
    assert decoded.flatten().tolist() == [0, 1, 2, 1, 4]
    assert target.classes == {"whole": (2, 1, 3, 4), "core": (1, 3, 4), "enhancing": (4,)}
    other = kind(labels=SAMPLE, regions=SAMPLE_REGIONS, class_order=[2, 3, 4])
    assert other.decode(other.activate(ideal_logits(other, other.encode(labels), labels))).flatten().tolist() == [
        *(0, 3, 2, 3, 4)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_values_are_named_and_ignored_ones_marked(kind: type[Regions | NestedClasses]) -> None:
    target = kind(labels=BRATS, regions=TUMOUR, ignore_label=9)
    assert target.encode(label(9, 0))[0, 0, 0].tolist() == [IGNORE, 0]
    with pytest.raises(BadLabels, match=r"\[3\] are unknown"):
        target.encode(label(0, 3))
    logits = torch.randn(1, target.out_channels, 1, 4)
    first = target.loss(logits, target.encode(label(9, 9, 2, 1)))
    assert torch.allclose(first, target.loss(logits[..., 2:], target.encode(label(2, 1))))


def test_nesting_holds_for_random_logits_means_and_resampling() -> None:
    torch.manual_seed(0)
    target = NestedClasses(labels=BRATS, regions=TUMOUR)
    p = target.activate(3 * torch.randn(4, 1, 9, 9))
    for probabilities in (p, p.mean(0, keepdim=True), nn.functional.interpolate(p, scale_factor=1.7, mode="bilinear")):
        assert (probabilities.diff(dim=1) <= 0).all()


def test_decoded_level_is_the_number_of_thresholds_passed() -> None:
    torch.manual_seed(0)
    target = NestedClasses(labels={"out": 0, "a": 1, "b": 2, "c": 3}, levels=[1, 2, 3])
    x = torch.randn(2, 1, 50, 50)
    passed = sum((x >= t).long() for t in target.activation.thresholds)
    assert torch.equal(target.decode(target.activate(x)).long(), passed[:, 0])


def test_sigmoid_regions_can_leave_their_outer_one_and_are_painted_over_it() -> None:
    target = Regions(labels=BRATS, regions=TUMOUR)
    p = torch.tensor([0.2, 0.3, 0.9]).view(1, 3, 1, 1)
    assert (p.diff(dim=1) > 0).any()
    assert target.decode(p).item() == 4


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"levels": ["edema", "necrosis"]}, r"no region has the dataset's labels 'enhancing' \(4\)"),
        ({"levels": ["edema", "necrosis", "enhancing", "edema"]}, r"levels name 'edema' \(2\) twice"),
        ({"levels": ["edema", "necrosis", "enhancin"]}, "'enhancin', which the dataset does not: did you mean 'enh"),
        ({"levels": ["edema", "background", "enhancing"]}, "the background"),
        ({"levels": "edema"}, "expected the labels of each level"),
        ({}, "needs levels or regions"),
        ({"levels": [2, 1, 4], "regions": TUMOUR}, "needs levels or regions, one of them"),
        ({"regions": {"whole": [1, 2], "enhancing": [4]}}, r"region 'enhancing' has label values \[4\] that 'whole'"),
        ({"regions": {"core": [1, 4], "whole": [1, 2, 4]}}, r"region 'whole' has label values \[2\] that 'core'"),
        ({"regions": {"whole": [1, 2, 4], "tumour": [4, 2, 1]}}, "regions 'whole' and 'tumour' are the same labels"),
        ({"regions": {"whole": [1, 2, 4], "core": [1, 1]}}, "expected different labels"),
        ({"regions": {"whole": [1, 2, 4], "core": []}}, "at least one"),
        ({"regions": TUMOUR, "class_order": [2, 1]}, "expected one value for each region"),
        ({"regions": TUMOUR, "class_order": [1, 1, 4]}, r"paints region 'whole' with 1 .*own: \[2\]"),
        ({"regions": TUMOUR, "k": 0}, "multi-level activation"),
    ],
)
def test_levels_that_cannot_be_are_refused_in_one_line(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        NestedClasses(labels=BRATS, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("regions", "told"),
    [
        (None, "the dataset declares none"),
        ({}, "at least one name"),
        ({"whole": [1, 2]}, r"'enhancing' \(4\)"),
        ({"core": [1, 4], "enhancing": [4], "whole": [2, 1, 4], "again": [2]}, "'core' has no label of its own"),
        ({"whole": [1, 2, 3, 4]}, "'3', which the dataset does not"),
    ],
)
def test_regions_that_cannot_be_are_refused_in_one_line(regions: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Regions(labels=BRATS, regions=regions)


def test_what_the_config_leaves_open_comes_from_the_dataset() -> None:
    facts = {"labels": BRATS, "ignore_label": None, "regions": TUMOUR, "class_order": [2, 1, 4]}
    for name in ("regions", "nested", "exclusive"):
        target = configure_target({"name": name, "regions": None}, facts)
        assert list(target.classes) == ["whole", "core", "enhancing"]
    asked = configure_target({"name": "nested", "levels": [[2, 1], 4]}, facts)
    assert list(asked.classes.values()) == [(2, 1, 4), (4,)]
    plain = configure_target({"name": "exclusive"}, {**facts, "regions": None})
    assert plain.classes == {"necrosis": (1,), "edema": (2,), "enhancing": (4,)}
    with pytest.raises(BadDataset, match="'core' has label values"):
        configure_target({"name": "nested"}, {**facts, "regions": {"enhancing": [4], "core": [1, 2, 4]}})


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_survives_another_process(kind: type[Regions | NestedClasses]) -> None:
    target = kind(labels=BRATS, regions=TUMOUR)
    assert pickle.loads(pickle.dumps(target)).to_dict() == target.to_dict()
    assert build_target(target.to_dict()).classes == target.classes


SIDES = {"background": 0, "left": 1, "right": 2, "left_core": 3, "right_core": 4}


def test_mirroring_exchanges_regions_that_are_each_others_mirror_image() -> None:
    pairs = [(1, 2), (3, 4)]
    ordered = Regions(labels=SIDES, regions={"left": [1, 3], "right": [2, 4], "left_core": 3, "right_core": 4})
    assert ordered.swapped(pairs) == [1, 0, 3, 2]
    assert NestedClasses(labels=SIDES, regions={"both": [1, 2, 3, 4], "cores": [3, 4]}).swapped(pairs) == [0]
    with pytest.raises(UsageError, match="predict without tta"):
        Regions(labels=SIDES, regions={"both": [1, 2, 3, 4], "left": [1, 3]}).swapped(pairs)
    with pytest.raises(UsageError, match="predict without tta"):
        NestedClasses(labels=SIDES, regions={"both": [1, 2, 3, 4], "left": [1, 3]}).swapped(pairs)


@pytest.mark.parametrize("name", ["unet", "unetpp", "residual_unet"])
@pytest.mark.parametrize("deep", [False, True])
def test_networks_begin_outside_every_region(name: str, deep: bool) -> None:
    torch.manual_seed(0)
    target = NestedClasses(labels=BRATS, regions=TUMOUR)
    arguments: dict[str, Any] = {"supervised_levels": 3 if deep else 1} if name == "residual_unet" else {}
    arguments |= {"norm": "instance"} if name == "unetpp" else {}
    arguments |= {"deep_supervision": deep} if name != "residual_unet" else {}
    network = create_model(name, spatial_dims=2, out_channels=1, base_channels=8, strides=[1, 2, 2], **arguments)
    start_heads(network, target)
    image = torch.randn(2, 1, 32, 32)
    logits = network.eval()(image)
    assert logits.mean().item() == pytest.approx(-2 * target.activation.h, abs=0.3)
    assert (target.decode(target.activate(logits)) > 0).float().mean() < 0.02
    heads = network.train()(image)
    for head in heads if isinstance(heads, list) else [heads]:
        assert head.mean().item() == pytest.approx(-2 * target.activation.h, abs=0.3)


def test_other_targets_leave_a_network_as_it_is() -> None:
    network = create_model("unet", spatial_dims=2, out_channels=3, base_channels=4, depth=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start_heads(network, Regions(labels=BRATS, regions=TUMOUR))
    start_heads(network, ExclusiveClasses(labels=BRATS))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def spheres() -> tuple[Tensor, Tensor]:
    """Concentric spheres of labels 2, 1 and 4 in noise that hides them: (1, 1, 16, 16, 16) each."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(16.0) - 7.5] * 3, indexing="ij"))
    radius = grid.square().sum(0).sqrt()
    labels = torch.zeros(1, 1, 16, 16, 16, dtype=torch.uint8)
    for value, size in ((2, 7), (1, 5), (4, 3)):
        labels[0, 0][radius < size] = value
    return labels.float() * 0.2 + torch.randn(labels.shape), labels


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_multi_level_activation_never_violates_nesting(kind: type[Regions | NestedClasses]) -> None:
    """A network of one layer that sees noise: sigmoids predict cores outside of their tumour, one logit never can."""
    torch.manual_seed(0)
    image, labels = spheres()
    target = kind(labels=BRATS, regions=TUMOUR)
    network = create_model("unet", out_channels=target.out_channels, base_channels=4, depth=1)
    start_heads(network, target)
    optimizer, codes = torch.optim.Adam(network.parameters(), lr=0.01), target.encode(labels)
    violations, losses = 0, []
    for _ in range(40):
        logits = network(image)
        inside = target.activate(logits.detach()) >= 0.5
        violations += int((inside[:, 1:] & ~inside[:, :-1]).sum())
        loss = target.loss(logits, codes)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert (violations == 0) == (kind is NestedClasses)


@pytest.mark.realdata
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["wbc", "Dataset043_BraTS_sample"])
def test_real_label_maps_become_regions_and_return(
    shared_data: Path, name: str, kind: type[Regions | NestedClasses]
) -> None:
    """Every region is the same voxels after encoding and decoding."""
    dataset = open_dataset(shared_data / name)
    regions: dict[str, Any] = {"cell": [1, 2], "nucleus": [2]} if name == "wbc" else SAMPLE_REGIONS
    target = kind(labels=dataset.labels, regions=regions)
    for case in dataset.training[:3]:
        assert case.label is not None
        labels = torch.from_numpy(read_labels(case.label).array[None].astype("int64"))
        decoded = target.decode(target.activate(ideal_logits(target, target.encode(labels), labels)))
        for values in target.classes.values():
            wanted = torch.tensor(values)
            assert torch.equal(torch.isin(decoded, wanted), torch.isin(labels[:, 0], wanted))
