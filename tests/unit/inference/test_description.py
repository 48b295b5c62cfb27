"""Every field of a model.json x {removed, null, wrong type, zero, huge, NaN, nested}: as it was, or refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medseg.device import choose_profile
from medseg.errors import InputRefused, MedsegError, UnreadableFile, UnsafeArtefact
from medseg.inference.adapter import base_of
from medseg.inference.description import Described, described, model_arguments
from medseg.inference.member import load_member
from medseg.inference.rebuild import check_finite, rebuild
from medseg.io import load_adapter, read_json, save_adapter, save_model, write_json
from medseg.models import MODELS, create_model, list_models
from medseg.targets import ExclusiveClasses
from medseg.testing import tiny_arguments

LABELS = {"background": 0, "organ": 1}
SPAN = {"min": [0.5, 0.5], "max": [2.0, 2.0]}
INTENSITY = {"case_min": 0.0, "case_max": 9.0, "percentile_00_5": 1.0, "percentile_99_5": 8.0, "mean": 4.0, "std": 2.0}
MODEL = {
    "name": "unet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "base_channels": 2, "max_channels": 320,
    "strides": [[1, 1], [2, 2]], "blocks_per_stage": 1, "norm": "instance", "activation": "leaky_relu",
    "encoder": {"name": "plain"}, "deep_supervision": False, "dropout": 0.0,
    "skips": {"pyramid": [], "edit": [], "merge": "concat"},
}  # fmt: skip
PLAN = {
    "dataset": "d", "spatial_dims": 2, "channel_names": ["CT"], "labels": LABELS, "ignore_label": None,
    "spacing": [1.0, 1.0], "patch_size": [8, 8], "batch_size": 1, "strides": [[1, 1], [2, 2]],
    "normalization": [{"scheme": "ct", "lower": -100.0, "upper": 300.0, "mean": 50.0, "std": 80.0}],
    "crop_nonzero": False, "mirror_axes": [0], "mirror_swaps": {"0": [[0, 1]]},
    "ranges": {"cases": 3, "spacing": SPAN, "shape": SPAN, "extent": SPAN, "intensity": [INTENSITY]},
    "reasons": {"spacing": "median"}, "size": None, "slice_axis": None, "color": "keep",
}  # fmt: skip
WHOLE = {
    "model": MODEL,
    "target": ExclusiveClasses(labels=LABELS).to_dict(),
    "plan": PLAN,
    "window_bytes": 10_000,
    "training": {"seed": 0},
    "metrics": {"Dice": float("nan")},
    "postprocessing": [{"operation": "minimum_size", "label": 1, "ml": 0.5, "gain": 0.01}],
}
REMOVED = object()
EDITS = (REMOVED, None, "text", -1, 0, 1e30, 10**9, math.nan, [], {"a": {"b": 1}}, True, [[1], "x"])
# What an edit may change without changing what is predicted: remarks, the guard's ranges, settings of training, and
# what is left out and then has the value that stood there.
REMARKS = ("training", "metrics", "plan.dataset", "plan.reasons", "plan.ranges", "plan.strides", "plan.channel_names")
FOLDER = Path("folder")


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every path into nested data, the root left out."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(value[key], (*at, key))


def edited(at: tuple[str | int, ...], edit: Any) -> dict[str, Any]:
    whole = copy.deepcopy(WHOLE)
    parent: Any = whole
    for key in at[:-1]:
        parent = parent[key]
    if edit is REMOVED:
        del parent[at[-1]]
    else:
        parent[at[-1]] = edit
    return json.loads(json.dumps(whole))


def named(at: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in at).lstrip(".")


def meaning(told: Described) -> dict[str, Any]:
    """What decides on a prediction."""
    plan = {k: v for k, v in told.plan.to_dict().items() if f"plan.{k}" not in REMARKS}
    operations = [{k: v for k, v in step.items() if k != "gain"} for step in told.operations]
    target = {k: v for k, v in told.target.to_dict().items() if k not in ("head_weights", "loss")}
    return {"plan": plan, "target": target, "operations": operations}


def outcome(description: dict[str, Any], state: dict[str, torch.Tensor]) -> Described | MedsegError:
    """What is read of a description, once the network is built of it; or its refusal."""
    try:
        told = described(description, FOLDER)
        if told.arguments != MODEL:
            assert _same(rebuild(lambda: create_model(**told.arguments), state, FOLDER, "unet"))
    except MedsegError as error:
        return error
    return told


def test_every_field_and_every_edit() -> None:
    state = create_model(**MODEL).state_dict()
    known, changed = meaning(described(WHOLE, FOLDER)), []
    for at in places(WHOLE):
        for edit in EDITS:
            found = outcome(edited(at, edit), state)
            if isinstance(found, MedsegError):
                assert found.exit_code in (3, 5)
                assert found.path == FOLDER
                assert "\n" not in str(found)
                assert "cannot be built" not in str(found), (at, edit)  # that names no field
            elif meaning(found) != known:
                changed.append((named(at), edit))
    assert [(at, edit) for at, edit in changed if not another_legal_value(at, edit)] == []


def another_legal_value(at: str, edit: Any) -> bool:
    """Nothing can tell these from what was meant."""
    numbers = (-1, 0, 1e30, 10**9)
    return (
        (at == "plan.crop_nonzero" and edit is True)
        or (at.startswith(("postprocessing", "plan.mirror_")) and (edit is REMOVED or edit == []))
        or (at.startswith(("plan.normalization[0].", "postprocessing[0].ml")) and edit in (*numbers, True))
    )


def _same(network: nn.Module) -> bool:
    """The very network of `MODEL`: layer by layer."""
    return [repr(m) for m in network.eval().modules()] == [repr(m) for m in create_model(**MODEL).eval().modules()]


def test_a_network_of_other_sizes_than_the_weights_takes_no_memory(tmp_path: Path) -> None:
    save_model(tmp_path, create_model(**MODEL).state_dict(), WHOLE)
    profile = choose_profile("cpu", "fp32")
    assert load_member(tmp_path, profile).plan.patch_size == (8, 8)
    for key, value, line in (
        ("base_channels", 100_000, r"is float32 \(2, 1, 3, 3\), not float32 \(320, 1, 3, 3\)"),
        ("max_channels", 10**9, "expected numbers within"),
        ("blocks_per_stage", 500_000, "far more layers than the weights"),
        ("depth", 10**6, "expected|far more layers|strides"),
        ("norm", "batch", "running_mean is missing"),
        ("activation", "tanh", "activation"),
    ):
        write_json(tmp_path / "model.json", {**read_json(tmp_path / "model.json"), "model": {**MODEL, key: value}})
        with pytest.raises(UnreadableFile, match=line):
            load_member(tmp_path, profile)


@pytest.mark.parametrize("name", list_models())
def test_every_model_is_drawn_on_meta_as_it_is_built(name: str) -> None:
    arguments = json.loads(json.dumps({"name": name, **tiny_arguments(name, 2)}))
    with torch.device("meta"):
        drawn = create_model(**arguments).state_dict()
    built = create_model(**arguments).state_dict()
    assert {tensor.device.type for tensor in drawn.values()} == {"meta"}
    assert [(key, t.shape, t.dtype) for key, t in drawn.items()] == [
        (key, t.shape, t.dtype) for key, t in built.items()
    ]
    assert model_arguments(arguments) == arguments
    check_finite(built, FOLDER)


def test_a_model_that_cannot_be_drawn_is_built_at_once(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, int(torch.ones(2).sum().item()))

    state = Counting().state_dict()
    assert rebuild(Counting, state, FOLDER, "counting").layer.out_features == 2
    with pytest.raises(UnreadableFile, match=r"layer.bias is missing"):
        rebuild(Counting, {"layer.weight": state["layer.weight"]}, FOLDER, "counting")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        state = create_model(**MODEL).state_dict()
        name = next(iter(state))
        state[name].view(-1)[0] = bad
        save_model(tmp_path, state, WHOLE)
        with pytest.raises(InputRefused, match=f"holds NaN or infinite weights: {name}"):
            load_member(tmp_path, choose_profile("cpu", "fp32"))


def test_a_folder_names_no_file_to_read() -> None:
    swin = {"name": "att_swin_unet", "spatial_dims": 2}
    for value in ("/etc/passwd", "../../weights.pth", True):
        with pytest.raises(UnsafeArtefact, match=r"model.pretrained names a file to read"):
            model_arguments({**swin, "pretrained": value})
    assert model_arguments({**swin, "pretrained": None}) == swin
    assert "pretrained" in MODELS.arguments("att_swin_unet")


@pytest.mark.parametrize("base", [None, "text", [], {}, {"path": 5, "fingerprint": "x"}, {"path": "x"}])
def test_an_adapter_that_does_not_name_its_base(tmp_path: Path, base: Any) -> None:
    save_adapter(tmp_path, {"a": torch.zeros(1)}, {"base": base})
    with pytest.raises(UnreadableFile, match="does not name the base model"):
        load_adapter(tmp_path)


def test_an_adapter_whose_parts_cannot_be(tmp_path: Path) -> None:
    save_model(tmp_path / "base", create_model(**MODEL).state_dict(), WHOLE)
    fingerprint = read_json(tmp_path / "base" / "model.json")["weights_sha256"]
    profile = choose_profile("cpu", "fp32")
    for skips in (
        "text",
        -1,
        [1],
        {"edit": 5},
        {"edit": [{"name": "nothing"}]},
        {"unknown": []},
        {"pyramid": {"a": 1}},
    ):
        base = {"path": str(tmp_path / "base"), "fingerprint": fingerprint}
        save_adapter(tmp_path / "adapter", {"a": torch.zeros(1)}, {"base": base, "skips": skips})
        with pytest.raises(MedsegError) as caught:
            load_member(tmp_path / "adapter", profile)
        assert caught.value.exit_code in (2, 3, 5)
    save_adapter(tmp_path / "gone", {"a": torch.zeros(1)}, {"base": {"path": "\0", "fingerprint": "x"}})
    with pytest.raises(UnreadableFile, match="is not there"):
        base_of(tmp_path / "gone")
