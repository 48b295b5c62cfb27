"""Adapters and bare weights on disk: what is written is read, and what could run code is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from medseg.errors import UnreadableFile, UnsafeArtefact, UsageError
from medseg.io import find_adapter, load_adapter, model_fingerprint, save_adapter, save_model
from medseg.io.weights import read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1)}
BASE = {"base": {"path": "/base", "fingerprint": "0"}, "skips": None}


def test_an_adapter_is_read_as_it_was_written(tmp_path) -> None:
    save_adapter(tmp_path / "adapter", STATE, BASE)
    assert find_adapter(tmp_path) == find_adapter(tmp_path / "adapter") == tmp_path / "adapter"
    state, description = load_adapter(tmp_path)
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())
    assert description == BASE


def test_an_adapter_beside_the_weights_of_a_model_does_not_replace_it(tmp_path) -> None:
    save_model(tmp_path, STATE, {})
    save_adapter(tmp_path / "adapter", STATE, BASE)
    assert find_adapter(tmp_path) is None
    assert find_adapter(tmp_path / "adapter") == tmp_path / "adapter"


def test_faults_are_refused(tmp_path) -> None:
    with pytest.raises(UnreadableFile, match="holds no adapter"):
        load_adapter(tmp_path)
    save_model(tmp_path / "model", STATE, {})
    assert len(model_fingerprint(tmp_path / "model")) == 64
    with pytest.raises(UsageError, match="holds a trained model"):
        save_adapter(tmp_path / "model", STATE, BASE)
    save_adapter(tmp_path / "nameless", STATE, {})
    with pytest.raises(UnreadableFile, match="does not name the base"):
        load_adapter(tmp_path / "nameless")
    save_adapter(tmp_path / "changed", STATE, BASE)
    file = tmp_path / "changed" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"1234")
    with pytest.raises(UnsafeArtefact, match="SHA-256"):
        load_adapter(tmp_path / "changed")


def test_bare_weights_come_from_safetensors_and_from_pytorch_files_without_code(tmp_path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save({"state_dict": STATE}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        assert torch.equal(read_weights(tmp_path / name)["a.weight"], STATE["a.weight"])
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(UnreadableFile, match="no state dict"):
        read_weights(tmp_path / "other.pth")
    torch.save({"x": torch.nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(UnsafeArtefact, match="code"):
        read_weights(tmp_path / "code.pth")
    with pytest.raises(UnreadableFile, match="cannot be read"):
        read_weights(tmp_path / "missing.pth")


def test_weights_go_into_a_named_encoder_only(tmp_path) -> None:
    from medseg.models import create_model
    from medseg.training.setup import load_encoder

    model = create_model("unet", spatial_dims=2, base_channels=4, encoder="vovnet/19_slim")
    state = {name: tensor + 1 for name, tensor in model.encoder.backbone.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    load_encoder(model, tmp_path / "w.safetensors")
    assert torch.equal(model.encoder.backbone.stem[0].conv.weight, state["stem.0.conv.weight"])
    plain = create_model("unet", spatial_dims=2, base_channels=4, depth=1)
    swin = create_model("att_swin_unet", depths=(2, 2), embed_dim=8, num_heads=2, window_size=4)
    for other, fix in ((plain, "e.g. model=unet"), (swin, "set model.pretrained=")):
        with pytest.raises(UsageError, match=f"needs a named encoder. Fix: {fix}"):
            load_encoder(other, tmp_path / "w.safetensors")
