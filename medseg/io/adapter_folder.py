"""An adapter on disk: adapter.safetensors and model.json with the fingerprint of the only model that it fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import UnreadableFile, UsageError
from medseg.io.model_folder import DESCRIPTION, WEIGHTS, read_description, read_model, tensors_from, write_model
from medseg.io.onnx_folder import ONNX

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "adapter.safetensors"


def find_adapter(folder: str | Path) -> Path | None:
    """The adapter folder that this is, or that a run of ``medseg adapt`` holds; None where there is none.

    A model's own folder is that model, also where an adapter was put beside its weights.
    """
    if any((Path(folder) / weights).is_file() for weights in (WEIGHTS, ONNX)):
        return None
    for path in (Path(folder), Path(folder) / "adapter"):
        if (path / ADAPTER).is_file():
            return path
    return None


def model_fingerprint(folder: str | Path) -> str:
    """SHA-256 of a model folder's weights, as its description has it."""
    return str(read_description(Path(folder) / DESCRIPTION)["weights_sha256"])


def save_adapter(folder: str | Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write an adapter folder.

    Args:
        folder: made if missing.
        state: the entries of the model's state that are new or changed.
        description: plain data: ``base`` (``path``, ``fingerprint``), ``skips`` that are attached, and how it was made.

    Raises:
        ResourceError: it cannot be written; the old files are intact.
        UsageError: the folder holds a trained model, which must not lose its description.
    """
    from safetensors.torch import save

    if (Path(folder) / WEIGHTS).exists():
        raise UsageError(f"holds a trained model ({WEIGHTS})", path=folder, fix="choose another folder")
    write_model(
        folder, ADAPTER, save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}), description
    )


def load_adapter(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an adapter folder, or the one in a run of ``medseg adapt``.

    Returns:
        The state and the description that were saved.

    Raises:
        UnreadableFile, UnsafeArtefact, UsageError: as `medseg.io.load_model`.
    """
    found = find_adapter(folder)
    if found is None:
        raise UnreadableFile(f"holds no {ADAPTER}", path=folder, fix="give the folder that medseg adapt wrote")
    content, description = read_model(found, ADAPTER)
    base = description.get("base")
    if not isinstance(base, dict) or not all(isinstance(base.get(key), str) for key in ("path", "fingerprint")):
        raise UnreadableFile("model.json does not name the base model", path=found, fix="adapt the model again")
    return tensors_from(content, found / ADAPTER), description
