"""One trained network: what a model folder holds, ready to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.data.plan import Plan
from medseg.device import DeviceProfile
from medseg.errors import UsageError
from medseg.inference.adapter import adapted, base_of
from medseg.inference.description import Described, described
from medseg.inference.memory import activation_bytes
from medseg.inference.onnx_network import OnnxNetwork
from medseg.inference.rebuild import rebuild
from medseg.io import find_adapter, holds_onnx, load_model, load_onnx
from medseg.models import create_model
from medseg.models.slices import with_slices
from medseg.targets import Target


@dataclass(frozen=True)
class Member:
    """A network with the plan and target that it was trained for, placed on its device.

    Attributes:
        postprocessing: operations for `medseg.inference.postprocess.postprocess`.
        window_bytes: of activations for one window; None: the network is asked, see `activation_bytes`.
    """

    network: nn.Module
    plan: Plan
    target: Target
    profile: DeviceProfile
    postprocessing: tuple[Mapping[str, Any], ...] = ()
    window_bytes: int | None = None

    def logits(self, batch: Tensor, *, mirror: bool = False) -> Tensor:
        """Logits of windows.

        Args:
            batch: (B, C, *patch_size) preprocessed.
            mirror: mean over the copies mirrored along the axes that the plan allows, left and right classes
                exchanged where the plan says so.

        Returns:
            (B, K, *patch_size) float32 on the CPU.
        """
        axes = self.plan.mirror_axes if mirror else ()
        flips = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
        total: Tensor | None = None
        for flip in flips:
            dims = [2 + axis for axis in flip]
            predicted = self.profile.run(self.network, batch.flip(dims) if dims else batch)
            if dims:
                predicted = predicted.flip(dims)[:, self._swapped(flip)]
            total = predicted if total is None else total.add_(predicted)
        assert total is not None
        return total.div_(len(flips)) if len(flips) > 1 else total

    def activation_bytes(self, batch: int) -> int:
        """Most bytes of activations alive while the network looks at so many windows."""
        if self.window_bytes is not None:
            return batch * self.window_bytes
        shape = (batch, len(self.plan.channel_names), *self.plan.patch_size)
        return activation_bytes(self.network, shape, self.profile.dtype)

    def host_bytes(self, batch: int) -> int:
        """Most bytes of main memory that so many windows take: all of the activations, or what comes and goes."""
        if self.profile.device.type == "cpu":
            return self.activation_bytes(batch)
        return 4 * batch * (len(self.plan.channel_names) + 2 * self.target.out_channels) * prod(self.plan.patch_size)

    def _swapped(self, flip: Sequence[int]) -> list[int]:
        """Channel order after mirroring: left and right classes change places on an axis that swaps them."""
        return self.target.swapped([pair for axis in flip for pair in self.plan.mirror_swaps.get(str(axis), ())])


def model_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds a model, else its ``fold_*`` folders."""
    folds = sorted(path.parent for path in folder.glob("fold_*/model.json"))
    return folds if folds and not (folder / "model.json").exists() else [folder]


def load_member(folder: Path, profile: DeviceProfile, adapter: str | Path | None = None) -> Member:
    """Rebuild a network from a model folder, in torch or in ONNX Runtime, and put it on the device to evaluate.

    Args:
        folder: a model, or an adapter that names its base model.
        profile: where it runs.
        adapter: what ``medseg adapt`` made of this model.

    Raises:
        UnreadableFile: the weights are not those of the model that the folder names; model.json holds what cannot be.
        InputRefused: weights that are NaN or infinite.
        UnsafeArtefact: as `medseg.io.load_model`; a model that names a file to read.
        UsageError: the adapter is of another model, or what it is put on is an adapter itself or an export.
    """
    if holds_onnx(folder) and adapter is None:
        return _load_onnx_member(folder, profile)
    state, description = load_adapted(folder, adapter)
    told = described(description, folder)
    network = rebuild(partial(create_model, **told.arguments), state, folder, told.arguments["name"])
    network = profile.place(with_slices(network, told.plan.slice_axis).eval())
    return Member(network, told.plan, told.target, profile, told.operations, _window_bytes(told, profile))


def load_adapted(folder: Path, adapter: str | Path | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and description of a model with its adapter, if any; arguments and errors as `load_member`."""
    if adapter is not None:
        _check_adapter(folder, adapter)
    elif find_adapter(folder):
        folder, adapter = base_of(folder), folder
    state, description = load_model(folder)
    return (state, description) if adapter is None else adapted(folder, state, description, adapter)


def _check_adapter(folder: Path, adapter: str | Path) -> None:
    if not isinstance(adapter, str | Path):
        raise UsageError(f"adapter is {adapter!r} (expected one folder)")
    if find_adapter(folder):
        raise UsageError(
            "is an adapter itself", path=folder, fix="give model=BASE adapter=FOLDER, or leave out adapter="
        )
    if holds_onnx(folder):
        raise UsageError("an exported model takes no adapter", path=folder, fix="export the adapter's own folder")


def _load_onnx_member(folder: Path, profile: DeviceProfile) -> Member:
    content, description = load_onnx(folder)
    told = described(description, folder, "window_bytes")
    network = OnnxNetwork(content, device=profile.device, threads=profile.threads)
    plan, target = told.plan, told.target
    network.check_shapes((len(plan.channel_names), *plan.patch_size), target.output_shape(plan.patch_size))
    window_bytes = _window_bytes(told, network.profile)
    return Member(network, plan, target, network.profile, told.operations, window_bytes)


def _window_bytes(told: Described, profile: DeviceProfile) -> int | None:
    """What the folder says, in float32, brought to the profile's type. To ask the network takes seconds of imports."""
    if told.window_bytes is None:
        return None
    return told.window_bytes * profile.dtype.itemsize // torch.float32.itemsize
