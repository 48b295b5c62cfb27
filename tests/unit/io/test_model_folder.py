"""Model folders: weights and plain data come back."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from medseg import __version__
from medseg.errors import UnreadableFile
from medseg.io import load_model, read_json, save_model
from medseg.io.model_folder import tensors_from
from medseg.io.weights import read_weights

DESCRIPTION = {"model": {"name": "unet", "channels": [1, 2]}, "target": {"name": "exclusive_classes"}}


def test_weights_and_description_come_back(tmp_path: Path) -> None:
    shared = torch.rand(3)
    weights = {
        "transposed": torch.rand(3, 4).t(),
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "half": torch.rand(3).bfloat16(),
        "count": torch.tensor(7),
        "tied_a": shared,
        "tied_b": shared,
    }
    save_model(tmp_path / "model", weights, DESCRIPTION)
    loaded, description = load_model(tmp_path / "model")
    assert description == DESCRIPTION
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]


def test_the_description_says_who_wrote_it_and_what_belongs_to_it(tmp_path: Path) -> None:
    save_model(tmp_path, {"a": torch.zeros(1)}, DESCRIPTION)
    data = read_json(tmp_path / "model.json")
    assert data["format"] == 1
    assert data["medseg"] == __version__
    assert len(data["weights_sha256"]) == 64


def test_a_model_is_replaced(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_model(tmp_path, {"a": torch.full((2,), value)}, {"value": value})
    weights, description = load_model(tmp_path)
    assert weights["a"].tolist() == [2.0, 2.0]
    assert description == {"value": 2.0}


def test_a_parameter_that_needs_gradients_is_saved(tmp_path: Path) -> None:
    save_model(tmp_path, torch.nn.Linear(2, 3).state_dict(keep_vars=True), {})
    assert load_model(tmp_path)[0]["weight"].shape == (3, 2)


def test_what_is_not_plain_cannot_be_described(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_model(tmp_path, {"a": torch.zeros(1)}, {"model": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("F32", [2**37], 4),  # 512 GiB promised
        ("F32", [2**63, 0], 0),
        ("F32", [0, 2**40, 2**40], 0),
        ("F8_E4M3", [8], 8),
        ("F8_E8M0", [8], 8),
        ("F4", [8], 4),
        ("Q4", [8], 4),
    ],
)
def test_tensors_that_torch_has_not_are_refused(tmp_path: Path, dtype: str, shape: list[int], size: int) -> None:
    header = json.dumps({"weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(size)
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"^w\.safetensors: .*\. Fix: [^\n]+$"):
        tensors_from(content, Path("w.safetensors"))
    with contextlib.suppress(UnreadableFile):  # from a file, safetensors takes more of them
        read_weights(tmp_path / "w.safetensors")
