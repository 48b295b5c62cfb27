"""Every registered target keeps the published contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medseg.errors import UsageError
from medseg.targets import TARGETS, build_target
from medseg.targets.base import configure_target
from medseg.testing import check_target

LABELS = {"background": 0, "organ": 1, "lesion": 2}
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "exclusive": [
        {"labels": LABELS},
        {"labels": LABELS, "ignore_label": 9, "loss": {"name": "dice_ce", "batch_dice": False}, "head_weights": [2, 1]},
        {"labels": {"background": 0, "organ": 2}, "binary": True, "loss": "cross_entropy"},
        {"labels": LABELS, "loss": {"name": "hybrid", "dice_mode": "pixel"}},
        {"labels": LABELS, "regions": {"whole": [1, 2], "lesion": ["lesion"]}},
    ],
    "nested": [
        {"labels": LABELS, "levels": ["organ", "lesion"]},
        {"labels": LABELS, "regions": {"whole": [1, 2], "lesion": 2}, "ignore_label": 9, "k": 5, "loss": "quadratic"},
        {"labels": LABELS, "levels": [["organ", "lesion"]], "loss": {"normalised_ce": 2}, "class_weights": [1, 3]},
        {"labels": LABELS, "levels": [2, 1], "loss": "region_dice", "head_weights": [2, 1]},
    ],
    "regions": [
        {"labels": LABELS, "regions": {"whole": ["organ", "lesion"], "lesion": "lesion"}},
        {"labels": LABELS, "regions": {"organ": [1], "lesion": [2]}, "ignore_label": 9, "loss": "cross_entropy"},
        {
            "labels": LABELS,
            "regions": {"whole": [1, 2]},
            "class_order": [2],
            "loss": {"dice": 1},
            "head_weights": [2, 1],
        },
    ],
    "landmarks": [
        {"labels": LABELS, "structures": {"organ": 7, "lesion": 4}},
        {"labels": LABELS, "structures": {"a": 3, "b": 4}, "values": {"a": 1, "b": 1}, "edges": [[0, 1], [3, 4]]},
    ],
}


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", TARGETS.names())
def test_target_keeps_the_contract(name: str, spatial_dims: int) -> None:
    torch.manual_seed(0)
    assert name in EXAMPLES, f"add an example of target '{name}' to EXAMPLES"
    for example in EXAMPLES[name]:
        target = build_target({"name": name, **example})
        if target.supervision == "points":
            check_target(target, torch.rand(2, target.points, 2))
            continue
        values = torch.tensor(list(example["labels"].values()))
        label = values[torch.randint(0, len(values), (2, 1, *[6] * spatial_dims))]
        check_target(target, label.to(torch.uint8))


@pytest.mark.parametrize("name", TARGETS.names())
def test_where_no_class_is_probable_there_is_background(name: str) -> None:
    """What the predictor relies on outside of a crop and of a mask."""
    for example in EXAMPLES[name]:
        target = build_target({"name": name, **example})
        if not target.dense:
            continue
        assert not target.decode(torch.zeros(2, target.probability_channels, 3, 4, 5)).any()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("landmarks", {"structures": 24}),
        ("landmarks", {"structures": [12, 12]}),
        ("landmarks", {"structures": {"organ": "x", "lesion": 12}}),
        ("landmarks", {"structures": {"organ": 4}, "edges": [1, 2]}),
        ("landmarks", {"structures": {"organ": 4}, "values": 3}),
        ("nested", {"levels": 2}),
        ("nested", {"levels": ["organ", "lesion"], "class_weights": 2}),
        ("nested", {"levels": ["organ", "lesion"], "class_order": 2}),
        ("nested", {"levels": ["organ", "lesion"], "k": "abc"}),
        ("regions", {"regions": {"w": 1.5}}),
        ("regions", {"regions": {"whole": [1, 2]}, "loss": 3}),
        ("exclusive", {"threshold": "abc"}),
        ("exclusive", {"loss": 3}),
    ],
)
def test_settings_of_another_type_are_refused_in_one_line(name: str, settings: dict[str, Any]) -> None:
    key = list(settings)[-1]
    with pytest.raises(UsageError, match=f"target {name} cannot be made of .*{key}=") as caught:
        build_target({"name": name, "labels": LABELS, **settings})
    assert "\n" not in str(caught.value)


def test_the_datasets_regions_are_not_blamed_for_a_wrong_setting() -> None:
    facts = {"labels": LABELS, "regions": {"whole": [1, 2], "lesion": [2]}}
    with pytest.raises(UsageError, match="cannot be made of"):
        configure_target({"name": "nested", "k": "abc"}, facts)
