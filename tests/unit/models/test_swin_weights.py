"""ImageNet weights of timm's Swin-T: every tensor arrives, the features are timm's, other files are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg.device import without_memory
from medseg.errors import ResourceError, UnreadableFile, UnsafeArtefact, UsageError
from medseg.models import create_model
from medseg.models.swin_weights import TIMM_NAME, load_swin_weights, mismatches
from medseg.training.setup import lasting_arguments

NARROW = {"embed_dim": 12, "num_heads": (3, 6, 12, 24)}


def narrow(**arguments: Any) -> Any:
    return create_model("att_swin_unet", **NARROW, **arguments)


@pytest.fixture(scope="module")
def swin_t() -> nn.Module:
    """timm's network, narrower, with random weights, since there may be no network to fetch those of ImageNet."""
    import timm

    torch.manual_seed(0)
    return timm.create_model(TIMM_NAME, pretrained=False, **NARROW).eval()


@pytest.fixture(scope="module")
def file(swin_t: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("weights") / "swin_t.safetensors"
    save_file(swin_t.state_dict(), path)
    yield path
    path.unlink()


@torch.no_grad()
def test_stages_are_timms(swin_t: nn.Module, file: Path) -> None:
    encoder = narrow(depths=(2, 2, 6, 2), pretrained=file).eval().encoder
    image = torch.randn(1, 3, 224, 224)
    mine, theirs = encoder.patch_embed(image), swin_t.patch_embed(image)
    for own_stage, stage in zip(encoder.layers, swin_t.layers, strict=True):
        mine, theirs = own_stage(mine, with_maps=False)[1], stage(theirs)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    last = encoder(image)[-1].permute(0, 2, 3, 1)
    torch.testing.assert_close(last, swin_t.forward_features(image), rtol=1e-4, atol=1e-4)


def test_swin_t_of_full_width_fits() -> None:
    import timm

    with without_memory():
        theirs = timm.create_model(TIMM_NAME, pretrained=False).state_dict()
        mine = create_model("att_swin_unet", depths=(2, 2, 6, 2)).encoder.state_dict()
    assert not mismatches(mine, theirs)
    assert {name for name in theirs if name not in mine} == {"head.fc.weight", "head.fc.bias"}


def test_two_blocks_per_stage_take_the_first_two(file: Path, swin_t: nn.Module) -> None:
    encoder = narrow().encoder
    report = load_swin_weights(encoder, file)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, swin_t.state_dict()[name]), name
    assert report.loaded == sorted(encoder.state_dict())
    assert not report.adapted
    assert {name.split(".blocks.")[0] for name in report.unused} == {"head.fc.weight", "head.fc.bias", "layers.2"}
    assert "tensors loaded, all of the encoder's; not used from the file: head.fc.bias" in str(report)


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_other_channels_and_windows_are_adapted_as_timm_does(file: Path, swin_t: nn.Module) -> None:
    encoder = narrow(in_channels=1, window_size=8).encoder
    report = load_swin_weights(encoder, file)
    stem = swin_t.state_dict()["patch_embed.proj.weight"]
    torch.testing.assert_close(encoder.patch_embed.proj.weight, stem.sum(1, keepdim=True))
    table = encoder.layers[0].blocks[0].attn.relative_position_bias_table
    assert table.shape == (15**2, 3)
    assert table.ne(0).all()
    assert len(report.adapted) == 1 + 8


def test_torch_files_are_read_wrapped_or_not(swin_t: nn.Module, tmp_path: Path) -> None:
    for name, content in {"plain.pth": swin_t.state_dict(), "wrapped.pth": {"model": swin_t.state_dict()}}.items():
        torch.save(content, tmp_path / name)
        encoder = narrow().encoder
        load_swin_weights(encoder, tmp_path / name)
        assert torch.equal(encoder.norm.weight, swin_t.norm.weight)
        (tmp_path / name).unlink()


def test_another_architecture_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    save_file(create_model("unet_classic", base_channels=4).state_dict(), tmp_path / "unet.safetensors")
    encoder = narrow().encoder
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(UsageError, match=r"another architecture: patch_embed.proj.weight is missing, .* and \d+ more"):
        load_swin_weights(encoder, tmp_path / "unet.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layers.3.blocks.1.mlp.fc2.bias"), r"layers.3.blocks.1.mlp.fc2.bias is missing\."),
        (lambda w: w.update({"norm.weight": torch.ones(3)}), r"norm.weight is \(3,\), not \(96,\)\."),
        (lambda w: w.update({"decoder.up": torch.ones(3)}), r"decoder.up is unknown\."),
        (lambda w: w.update({"patch_embed.proj.weight": torch.ones(12, 3, 2, 2)}), "patch_embed.proj.weight is"),
    ],
)
def test_what_does_not_match_is_named(change, message: str, swin_t: nn.Module, tmp_path: Path) -> None:
    weights: dict[str, Tensor] = dict(swin_t.state_dict())
    change(weights)
    save_file(weights, tmp_path / "changed.safetensors")
    with pytest.raises(UsageError, match=message):
        narrow(pretrained=tmp_path / "changed.safetensors")


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="check the path"):
        narrow(pretrained=tmp_path / "nowhere.safetensors")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UnreadableFile, match="neither safetensors nor a torch file"):
        narrow(pretrained=tmp_path / "text.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(UnreadableFile, match="no state dict"):
        narrow(pretrained=tmp_path / "numbers.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "object.pth")
    with pytest.raises(UnsafeArtefact, match="could run code"):
        narrow(pretrained=tmp_path / "object.pth")


def test_without_network_the_download_fails_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ResourceError, match=f"the weights of timm's {TIMM_NAME} cannot be downloaded") as caught:
        narrow(pretrained=True)
    assert "\n" not in str(caught.value)


def test_a_model_folder_does_not_ask_for_the_file_again() -> None:
    assert lasting_arguments({"name": "att_swin_unet", "pretrained": "x"}) == {"name": "att_swin_unet"}


def test_weights_in_the_layout_of_microsoft_are_read(swin_t: nn.Module, file: Path, tmp_path: Path) -> None:
    mine = narrow(depths=(2, 2, 6, 2), pretrained=file).encoder.state_dict()
    moved = {
        re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name): tensor
        for name, tensor in swin_t.state_dict().items()
    }
    torch.save({"model": moved}, tmp_path / "swin.pth")
    theirs = narrow(depths=(2, 2, 6, 2), pretrained=tmp_path / "swin.pth").encoder.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
