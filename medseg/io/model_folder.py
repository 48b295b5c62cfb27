"""A model on disk: model.safetensors and model.json, plain numbers and names; loading one cannot run code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg import __version__
from medseg.errors import UnreadableFile, UnsafeArtefact, UsageError, some
from medseg.io.atomic import atomic_path, sync, to_json
from medseg.io.memory import out_of_memory
from medseg.io.sidecar import read_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
PICKLE_ENDINGS = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".model")
_OWN_KEYS = ("format", "medseg", "weights_sha256")


def save_model(folder: str | Path, state_dict: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write a model folder.

    Args:
        folder: made if missing.
        state_dict: name -> tensor, on any device.
        description: plain data: model name and arguments, target, plan, metrics.

    Raises:
        ResourceError: it cannot be written; the old files are intact.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    write_model(folder, WEIGHTS, save(contiguous), description)


def load_model(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a model folder.

    Returns:
        state_dict (name -> CPU tensor) and the description that was saved with it.

    Raises:
        UnreadableFile: the folder or one of its files is missing or damaged.
        UnsafeArtefact: a pickle, weights that are not those described, or a description that names code.
        UsageError: written by a newer medseg.
    """
    weights, description = read_model(folder, WEIGHTS)
    return tensors_from(weights, Path(folder) / WEIGHTS), description


def write_model(folder: str | Path, name: str, weights: bytes, description: Mapping[str, Any]) -> None:
    """Write weights, as bytes so that a full disk shows as Python's own error, and model.json with their hash.

    Both files are complete on the disk before the first takes its name, so a kill leaves the old model or the new
    one; only between the two renames can it leave a pair whose hashes differ, which `read_model` refuses.
    """
    own = {"format": FORMAT, "medseg": __version__, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    text = to_json({**own, **description})
    with atomic_path(Path(folder) / DESCRIPTION) as json_file:
        json_file.write_text(text, encoding="utf-8")
        sync(json_file)
        with atomic_path(Path(folder) / name) as weights_file:
            weights_file.write_bytes(weights)


def read_model(folder: str | Path, name: str) -> tuple[bytes, dict[str, Any]]:
    """The weights of that file name, whose hash is the one described, and the description; errors of `load_model`."""
    folder = Path(folder)
    _check_folder(folder, name)
    description = read_description(folder / DESCRIPTION)
    weights = (folder / name).read_bytes()
    found = hashlib.sha256(weights).hexdigest()
    if found != description["weights_sha256"]:
        problem = f"its SHA-256 is {found[:12]}... ({DESCRIPTION} says {str(description['weights_sha256'])[:12]}...)"
        raise UnsafeArtefact(problem, path=folder / name, fix="copy or download the whole model folder again")
    return weights, {key: description[key] for key in description if key not in _OWN_KEYS}


def _check_folder(folder: Path, weights: str) -> None:
    if folder.suffix.lower() in PICKLE_ENDINGS and folder.exists():
        problem = "is a pickle, which can run code when loaded (expected a model folder)"
        raise UnsafeArtefact(problem, path=folder, fix=f"give a folder with {weights} and {DESCRIPTION}")
    if not folder.is_dir():
        raise UnreadableFile("is not a model folder", path=folder, fix="check the path")
    missing = [name for name in (weights, DESCRIPTION) if not (folder / name).is_file()]
    if missing:
        raise UnreadableFile(f"lacks {' and '.join(missing)}", path=folder, fix="give a complete model folder")


def read_description(path: Path) -> dict[str, Any]:
    """A model.json whose head is that of a format this medseg reads; errors of `load_model`."""
    description = read_json(path)
    if not isinstance(description, dict) or not isinstance(description.get("weights_sha256"), str):
        raise UnreadableFile("has no 'weights_sha256'", path=path, fix="copy the model folder again")
    version = description.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        problem = f"format is {version!r:.40} (expected 1 to {FORMAT})"
        raise UnreadableFile(problem, path=path, fix="copy the model folder again")
    if version > FORMAT:
        raise UsageError(f"format {version} is newer than this medseg reads ({FORMAT})", path=path, fix="update medseg")
    if _names_code(description):
        raise UnsafeArtefact("has a '_target_', which names code to run (expected names and numbers)", path=path)
    return description


def _names_code(data: Any) -> bool:
    if isinstance(data, dict):
        return "_target_" in data or any(map(_names_code, data.values()))
    return isinstance(data, list) and any(map(_names_code, data))


def tensors_from(weights: bytes, path: Path) -> dict[str, Tensor]:
    """Name -> tensor, from the bytes of a safetensors file.

    Raises:
        UnsafeArtefact: a pickle named like one.
        UnreadableFile: damaged, of types or sizes that torch has not, or with weights that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = dict(sorted(load(weights).items()))  # the library gives them in another order each time
        damaged = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    except SafetensorError as error:
        if weights[:1] == b"\x80" or weights[:2] == b"PK":
            raise UnsafeArtefact("is a pickle named like safetensors", path=path) from None
        raise UnreadableFile(f"is not a safetensors file: {error}", path=path, fix="copy it again") from None
    except (KeyError, TypeError, RuntimeError) as error:  # types and sizes of the format that torch has not
        if out_of_memory(error):
            raise
        problem = f"holds tensors that torch cannot take: {str(error).splitlines()[0][:200]}"
        raise UnreadableFile(problem, path=path, fix="use weights that medseg wrote") from None
    if damaged:
        problem = f"holds NaN or infinite weights: {some(damaged)}"
        raise UnreadableFile(problem, path=path, fix="train the model again, or copy it from where it is whole")
    return tensors
