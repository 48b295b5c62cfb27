"""Weights that other programs wrote: tensors by name, read without running code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import ResourceError, UnreadableFile
from medseg.io.checkpoint import load_checkpoint
from medseg.io.memory import out_of_memory

if TYPE_CHECKING:
    from torch import Tensor


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict: a safetensors file, or one of `torch.save`; what stands under ``"model"`` is unwrapped.

    Args:
        path: the file; its content decides, not its ending.

    Returns:
        name -> CPU tensor.

    Raises:
        UnreadableFile: missing, damaged, or without named tensors.
        UnsafeArtefact: it holds objects that could run code.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror or error}", path=path, fix="check the path") from None
    state: Any = load_checkpoint(path) if start[:2] == b"PK" or start[:1] == b"\x80" else _read_safetensors(path)
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    import torch

    if not isinstance(state, Mapping) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UnreadableFile("is no state dict (expected tensors by name)", path=path)
    return dict(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(sorted(load_file(path).items()))  # the library gives them in another order each time
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:  # torch lacks some types and sizes
        if out_of_memory(error):
            raise
        problem = f"is neither safetensors nor a torch file: {str(error).splitlines()[0][:200]}"
        raise UnreadableFile(problem, path=path, fix="copy it again") from None


def download_timm_weights(name: str) -> dict[str, Tensor]:
    """The state dict of a timm model with its default pretrained weights, which timm fetches once and keeps.

    Raises:
        ResourceError: no connection.
    """
    from timm import create_model

    try:
        return dict(create_model(name, pretrained=True).state_dict())
    except Exception as error:  # the hub's clients raise what their libraries raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        fix = "check the network, or download the file elsewhere and give its path"
        raise ResourceError(f"the weights of timm's {name} cannot be downloaded: {reason}", fix=fix) from error
