"""``medseg export``: a model folder for ONNX Runtime, or a MONAI bundle, checked before it is written."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.data.outputs import check_outputs, keep_account, plain_path
from medseg.device import choose_profile
from medseg.errors import MedsegError, UsageError, nearest, some
from medseg.inference.export_bundle import BUNDLE_FILES, write_bundle
from medseg.inference.member import Member, load_adapted, load_member, model_folders
from medseg.inference.onnx_network import OnnxNetwork
from medseg.io import holds_onnx, save_onnx
from medseg.io.onnx_folder import ONNX_FILES

OPSET = 18
TOLERANCE = 1e-4  # of the largest logit, and of 1 where they are smaller
LARGEST_ONNX = 2**31 - 2**20  # bytes of weights in one protobuf message


def export_model(model: str | Path, output: str | Path, format: str = "onnx") -> list[Path]:
    """Write a trained model for other programs.

    ``"onnx"``: a model folder with ``model.onnx`` (input ``image`` (B, C, *patch_size), output ``logits`` (B, K,
    *patch_size), float32) and ``model.json``; `Predictor.from_pretrained` runs it as it runs the original.
    ``"monai"``: a MONAI bundle, see `medseg.inference.export_bundle.write_bundle`.

    Args:
        model: model folder, an adapter whose base is there, or the folder of a run with several folds.
        output: folder to write; of several folds, with a folder for each.
        format: ``"onnx"`` or ``"monai"``.

    Returns:
        The folders that were written.

    Raises:
        UsageError: an unknown format, a model that is exported already or cannot be, packages that are missing, an
            output that would replace what is not an export of ours, see `medseg.data.outputs`.
        UnreadableFile, UnsafeArtefact: as `medseg.io.load_model`.
        ResourceError: it cannot be written.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}': {nearest(format, FORMATS)}")
    write, files = FORMATS[format]
    folders, output = model_folders(Path(model)), plain_path(output)
    outputs = [output / folder.name if len(folders) > 1 else output for folder in folders]
    for target in (output, *outputs):
        check_outputs(target, files if target in outputs else (), [model, *folders])
    for number, (source, target) in enumerate(zip(folders, outputs, strict=True)):
        if holds_onnx(source):
            raise UsageError("is exported already", path=source, fix="give the folder that medseg train wrote")
        try:
            write(source, target)
        except MedsegError as error:
            error.written = some([f"{done} is written." for done in outputs[:number]]) or error.written
            error.args = (str(error),)
            raise
    return outputs


def _export_onnx(source: Path, output: Path) -> None:
    member, description = _load(source)
    windows = _windows(member)
    network = to_onnx(member.network, windows[-1])
    session = OnnxNetwork(network, device=torch.device("cpu"), threads=torch.get_num_threads())
    difference = _check(session, member.network, windows)
    facts = {"opset": OPSET, "input": "image", "output": "logits", "torch": torch.__version__}
    own = {"window_bytes": member.activation_bytes(1), "onnx": {**facts, "largest_difference": difference}}
    keep_account(output, ONNX_FILES)
    save_onnx(output, network, {**description, **own})


def _export_monai(source: Path, output: Path) -> None:
    member, description = _load(source)
    windows = _windows(member)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; it is what bundles without code are made of
        traced = torch.jit.trace(member.network, windows[-1], check_trace=False)
        _check(traced, member.network, windows)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
    write_bundle(output, buffer.getvalue(), member, description)


FORMATS: dict[str, tuple[Callable[[Path, Path], None], tuple[str, ...]]] = {  # and the files that it writes
    "onnx": (_export_onnx, ONNX_FILES),
    "monai": (_export_monai, BUNDLE_FILES),
}


def to_onnx(network: nn.Module, images: Tensor) -> bytes:
    """An ONNX model of a network in evaluation mode, for any batch of images of one size.

    Args:
        network: on the CPU.
        images: (B, C, *S), B at least 2.

    Returns:
        The model, serialised; it holds neither paths nor traces of this machine.

    Raises:
        UsageError: the packages are missing, it is larger than ONNX allows, or does what ONNX cannot.
    """
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > LARGEST_ONNX:
        raise UsageError(f"the weights are {size / 2**30:.1f} GiB (ONNX holds 2 in one file)", fix="use format=monai")
    try:
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass

        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    except ImportError as error:
        raise UsageError(f"the ONNX export needs onnx ({error})", fix='pip install "medseg[onnx]"') from None
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"torch cannot export this network to ONNX: {reason}", fix="use format=monai") from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    return program.model_proto.SerializeToString()


def _load(source: Path) -> tuple[Member, dict[str, Any]]:
    member = load_member(source, choose_profile("cpu", "fp32", channels_last=False))
    return member, load_adapted(source)[1]


def _windows(member: Member) -> list[Tensor]:
    """Random windows as the network sees them: a batch of one, and one of two."""
    random = torch.Generator().manual_seed(0)
    shape = (len(member.plan.channel_names), *member.plan.patch_size)
    return [torch.randn((batch, *shape), generator=random) for batch in (1, 2)]


@torch.no_grad()
def _check(exported: Callable[[Tensor], Tensor], network: nn.Module, windows: list[Tensor]) -> float:
    """The largest difference of logits, as a share of the largest logit or of 1."""
    found = 0.0
    for images in windows:
        expected = network(images)
        difference = float((exported(images) - expected).abs().max()) / max(1.0, float(expected.abs().max()))
        if not difference <= TOLERANCE:
            problem = f"the exported network differs by {difference:.2g} of the largest logit (at most {TOLERANCE:g})"
            raise UsageError(problem, fix="report the model with its arguments, and use another format meanwhile")
        found = max(found, difference)
    return found


def export_command(cfg: Mapping[str, Any]) -> None:
    """Run ``medseg export`` from its config (``model``, ``format``, ``output``, see configs/export.yaml)."""
    for folder in export_model(cfg["model"], cfg["output"], cfg["format"]):
        print(f"medseg: {folder} written, its logits are those of {cfg['model']}")
