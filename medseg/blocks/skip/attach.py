"""Attach parts to a trained network and choose what is trained; detached, the network is as before, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from medseg.blocks.skip import SkipSettings
from medseg.blocks.skip.path import SkipPath, skip_path, skip_settings
from medseg.errors import UsageError, nearest

TRAIN = ("skips", "head", "skips+head", "decoder", "all")
ENCODER, HEAD = ("encoder.*",), ("heads.*",)  # unless the model says otherwise: encoder_names, head_names


@dataclass
class Attachment:
    """What `detach_skips` needs: how the path ended before, and the host's state that training can change."""

    pyramid: int
    edits: int
    state: dict[str, Tensor]
    trainable: dict[str, bool]
    hook: RemovableHandle
    held: set[str] = field(default_factory=set)  # frozen normalisations that it keeps in evaluation mode


def attach_skips(model: nn.Module, settings: SkipSettings = None, *, train: str = "skips") -> list[str]:
    """Append pyramid operations and edits to a model's skip path, and freeze all that is not to be trained.

    What is attached comes in the model's mode, precision and device, so that a forward pass can follow at once. Frozen
    batch normalisation keeps to its running statistics, in training too. Activations of a frozen encoder are not kept
    in memory.

    Args:
        model: hosts a skip path, e.g. a trained model.
        settings: ``{"pyramid": [...], "edit": [...]}``; a merge cannot be exchanged, as channels depend on it.
        train: ``"skips"``: what is attached; ``"head"``: the last layers, with nothing attached that would learn;
            ``"skips+head"``; ``"decoder"``: all but the encoder; ``"all"``.

    Returns:
        Names of the parameters to train; their ``requires_grad`` is set.

    Raises:
        UsageError: something is attached already, a merge is given, nothing is left to train, the head alone is while
            parts with parameters are attached, a name is unknown, or the settings are none.
    """
    path = skip_path(model)
    if train not in TRAIN:
        raise UsageError(f"unknown train '{train}': {nearest(train, TRAIN)}")
    if attachment(model) is not None:
        raise UsageError("the model has skips attached already", fix="call detach_skips first")
    if skip_settings(settings)["merge"] is not None:
        raise UsageError(
            "a merge cannot be attached to a trained model, as its channels depend on it", fix="train anew"
        )
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    place = next(model.parameters())
    before = len(path.pyramid), len(path.edits)
    try:
        path.extend(settings)
    except UsageError:  # the parts before the one that is refused are there already
        _shorten(path, *before)
        raise
    for part in (*path.pyramid[before[0] :], *path.edits[before[1] :]):
        part.to(place.device, place.dtype).train(model.training)
    parameters = dict(model.named_parameters())
    trained = [name for name in parameters if _is_trained(model, name, name not in trainable, train)]
    if train == "head" and parameters.keys() - trainable.keys():
        _shorten(path, *before)
        raise UsageError("train=head leaves what is attached untrained", fix="train skips+head")
    if not trained:
        _shorten(path, *before)
        raise UsageError(f"train={train} leaves nothing to train", fix="attach an edit that has parameters")
    kept = {name for name, tensor in model.state_dict().items() if name in trainable and name in trained}
    kept |= _statistics(model, set(trained))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in kept}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    hook = model.register_forward_pre_hook(_hold_frozen_statistics)
    path.attached = Attachment(*before, state, trainable, hook)
    return trained


def detach_skips(model: nn.Module) -> None:
    """Remove what `attach_skips` and `calibrate_skips` added, and restore the weights that were trained."""
    path, attached = skip_path(model), attachment(model)
    if path.calibrated is not None:  # the host's own edits are before it, those attached before or after it
        _shorten(path, len(path.pyramid), path.calibrated)
    if attached is None:
        return
    _shorten(path, attached.pyramid, attached.edits)
    state = model.state_dict()
    for name in attached.state.keys() & state.keys():  # a pruned network has fewer
        state[name].copy_(attached.state[name])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(attached.trainable[name])
    attached.hook.remove()
    path.attached = None
    for name, module in model.named_modules():
        if name in attached.held:
            module.train(model.training)


def attachment(model: nn.Module) -> Attachment | None:
    """What is attached to a model, if anything."""
    return cast("Attachment | None", skip_path(model).attached)


def changed_state(model: nn.Module, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a model's state that are new or differ from the base's: what an adapter has to hold."""
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if name not in base or not tensor.equal(base[name])}


def add_settings(settings: SkipSettings, more: SkipSettings) -> dict[str, Any]:
    """Settings of a path with others attached to it."""
    first, second = skip_settings(settings), skip_settings(more)
    return {**first, **{role: first[role] + second[role] for role in ("pyramid", "edit")}}


def _shorten(path: SkipPath, pyramid: int, edits: int) -> None:
    """Keep the first so many pyramid operations and edits."""
    del path.pyramid[pyramid:], path.edits[edits:], path.pyramid_levels[pyramid:]
    if path.calibrated is not None and path.calibrated >= edits:
        path.calibrated = None


def _is_trained(model: nn.Module, name: str, attached: bool, train: str) -> bool:
    if train == "all" or (attached and train != "head"):
        return True
    if train == "decoder":
        return not _matches(name, getattr(model, "encoder_names", ENCODER))
    return train in ("head", "skips+head") and _matches(name, getattr(model, "head_names", HEAD))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _statistics(model: nn.Module, trained: set[str]) -> set[str]:
    """Names of the running statistics of normalisations whose weights are trained."""
    return {
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and f"{name}.weight" in trained
        for buffer, _ in module.named_buffers()
    }


def _hold_frozen_statistics(model: nn.Module, _: Any) -> None:
    held = cast(Attachment, attachment(model)).held
    for name, module in model.named_modules():
        frozen = isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters())
        if frozen and module.training:
            module.eval()
            held.add(name)
