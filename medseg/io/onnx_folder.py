"""A model on disk for ONNX Runtime: model.onnx and model.json, checked before anything interprets them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medseg.errors import UnreadableFile, UnsafeArtefact, UsageError
from medseg.io.model_folder import DESCRIPTION, WEIGHTS, read_model, write_model

ONNX = "model.onnx"
ONNX_FILES = (ONNX, DESCRIPTION)
STANDARD = ("", "ai.onnx")  # operator domains


def holds_onnx(folder: str | Path) -> bool:
    """Whether a model folder is one of ``medseg export format=onnx``."""
    return (Path(folder) / ONNX).is_file() and not (Path(folder) / WEIGHTS).is_file()


def save_onnx(folder: str | Path, network: bytes, description: Mapping[str, Any]) -> None:
    """Write an ONNX model folder; as `medseg.io.save_model`.

    Args:
        folder: made if missing.
        network: a serialised ONNX model with its weights.
        description: plain data, as in the folder that it was exported from.

    Raises:
        ResourceError: it cannot be written; the old files are intact.
        UsageError: the folder holds a trained model, which must not lose its description.
    """
    if (Path(folder) / WEIGHTS).exists():
        raise UsageError(f"holds a trained model ({WEIGHTS})", path=folder, fix="choose another output folder")
    write_model(folder, ONNX, network, description)


def load_onnx(folder: str | Path) -> tuple[bytes, dict[str, Any]]:
    """Read an ONNX model folder.

    The network is data: standard operators and weights within the one file. Weights in other files, which ONNX allows
    with any path, and operators of other domains, which libraries would have to be loaded for, are refused.

    Returns:
        The serialised ONNX model, and the description that was saved with it.

    Raises:
        UnreadableFile, UnsafeArtefact, UsageError: as `medseg.io.load_model`; no onnx is installed.
    """
    network, description = read_model(folder, ONNX)
    _check_contained(network, Path(folder) / ONNX)
    return network, description


def _check_contained(network: bytes, path: Path) -> None:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise UsageError(f"an ONNX model needs onnx ({error})", fix='pip install "medseg[onnx]"') from None
    try:
        model = onnx.load_model_from_string(network)
    except DecodeError as error:
        raise UnreadableFile(f"is not an ONNX model: {error}", path=path, fix="export it again") from None
    foreign = sorted({entry.domain for entry in model.opset_import} - set(STANDARD))
    if foreign:
        raise UnsafeArtefact(f"uses operators of '{foreign[0]}' (expected standard ONNX only)", path=path)
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "?")
            problem = f"keeps the weights '{tensor.name}' in another file, '{where}' (expected all in one)"
            raise UnsafeArtefact(problem, path=path, fix="export it again with medseg export")


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor at any depth of an ONNX message: of graphs, of sub-graphs in attributes, of functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if hasattr(value, "extend") else [value]:
                yield from _tensors(item)
