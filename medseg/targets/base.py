"""The Target protocol, its registry, and deep supervision, which is the same for every kind of label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from medseg.errors import BadDataset, UsageError
from medseg.registry import Registry


class HeadStart(NamedTuple):
    """How a target wants the last convolutions of a network to begin: their bias, and a factor of their weights."""

    bias: float
    scale: float


@runtime_checkable
class Target(Protocol):
    """The one place that knows what labels mean.

    Targets that label voxels take the rest from `DenseTarget`; `medseg.targets.landmarks` has one that does not.

    Attributes:
        out_channels: K, logits per voxel; of points, values for each voxel that they fill in the end.
        probability_channels: P, what `activate` makes of them; another number than K where one logit says more.
        classes: name -> label values of what is scored.
        head_start: None: as the network initialises itself.
        dense: whether the output lies on the image's grid, so that large images can be cut into windows, and mirrored
            outputs averaged. Else the network sees the image as a whole, and its output is points (B, N, 2).
        supervision: what of a sample `encode` is given, ``"label"`` or ``"points"``.
        points: landmarks that every case must have to be trained on.
        mirrors: whether a mirrored image is another example of the same classes.
        layout: what the output's points belong to, as in landmarks.json; None where there are none.
    """

    name: str
    out_channels: int
    probability_channels: int
    head_start: HeadStart | None
    dense: bool
    supervision: str
    points: int
    mirrors: bool
    layout: dict[str, Any] | None

    @property
    def classes(self) -> dict[str, tuple[int, ...]]: ...

    @property
    def channels(self) -> tuple[tuple[int, ...], ...]:
        """Label values that each of the P channels of probabilities stands for; empty for points."""
        ...

    def model_arguments(self) -> dict[str, Any]:
        """What a model has to be told, by the names of its arguments; those that it does not take are left out."""
        ...

    def output_shape(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Shape of a network's output for one window, in evaluation, without the batch."""
        ...

    def encode(self, label: Tensor) -> Tensor:
        """What ``supervision`` names -> what `loss` compares with. Raises BadLabels for what it does not know.

        Args:
            label: label values (B, 1, *S); or points (B, N, 2), x and y in units of the patch's width and height.
        """
        ...

    def loss(self, logits: Any, target: Tensor) -> Tensor:
        """Logits (B, K, *S), or one such tensor per head, or points, and an encoded target -> scalar."""
        ...

    def activate(self, logits: Tensor) -> Tensor:
        """Logits (B, K, *S) -> probabilities (B, P, *S) in 0..1, at least float32; so are means of them.

        Points stay points (B, N, 2).
        """
        ...

    def decode(self, probabilities: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Probabilities (B, P, *S) -> label values (B, *S), the smallest of uint8, int16 and int32 that holds them.

        Where all probabilities are 0 the background is decoded.

        Args:
            probabilities: or points, of ``activate``.
            size: of the label map to make of points; probabilities have one already.
        """
        ...

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, P, *S) -> entropy (B, *S), 0 (certain) to 1 (anything may be there)."""
        ...

    def swapped(self, pairs: Sequence[Sequence[int]]) -> list[int]:
        """Order of the K channels of logits after pairs of label values changed places in a mirror.

        Raises UsageError where exchanged channels cannot express it.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain data with ``name`` from which `build_target` rebuilds this target."""
        ...


class DenseTarget:
    """What all targets share whose networks give ``out_channels`` logits for each voxel."""

    out_channels: int
    dense: bool = True
    supervision: str = "label"
    points: int = 0
    mirrors: bool = True
    layout: dict[str, Any] | None = None

    def model_arguments(self) -> dict[str, Any]:
        """Logits per voxel."""
        return {"out_channels": self.out_channels}

    def output_shape(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """(K, *patch_size)."""
        return (self.out_channels, *patch_size)


TARGETS: Registry[Target] = Registry("target", "medseg.targets")


class WrongSettings(UsageError):
    """Settings of a target that are not even of the right type; only the user can have given them."""


def build_target(description: Mapping[str, Any]) -> Target:
    """Build a target from ``{"name": ..., **arguments}``, e.g. from `Target.to_dict`.

    Raises:
        UsageError: for a missing or unknown name, an unknown argument, or a setting of another type than expected.
    """
    if "name" not in description:
        raise UsageError(f"target has no 'name' (known: {', '.join(TARGETS.names())})")
    name, settings = description["name"], {k: v for k, v in description.items() if k != "name"}
    try:
        return TARGETS.build(name, **settings)
    except (TypeError, ValueError, AttributeError) as error:  # what converting and unpacking raises
        shown = ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None and key != "labels")
        problem = f"target {name} cannot be made of {shown} ({error})"
        raise WrongSettings(problem, fix=f"give what configs/target/{name}.yaml says of each setting") from error


def configure_target(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Target:
    """The target of a config; what the config leaves open and the target takes comes from the dataset.

    Args:
        settings: ``name`` and arguments; None is open.
        facts: of the dataset: ``labels``, ``ignore_label``, ``regions`` and ``class_order``; None is not known.

    Raises:
        UsageError: as `build_target`.
        BadDataset: regions that the dataset itself declares are refused.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    known = {key: value for key, value in facts.items() if key in TARGETS.arguments(settings["name"])}
    if {"regions", "levels"} & given.keys():
        known.pop("class_order", None)  # it belongs to the dataset's regions
    declared = known.get("regions") is not None and not {"regions", "levels"} & given.keys()
    if "levels" in given:
        known.pop("regions", None)
    try:
        return build_target({**known, **given})
    except UsageError as error:
        if not declared or isinstance(error, WrongSettings):
            raise
        raise BadDataset(error.problem, fix=error.fix or "correct the regions in dataset.json") from error


def head_weights(heads: Sequence[Tensor], weights: Sequence[float] | None = None) -> list[float]:
    """Weights of the heads' losses, summing to 1.

    Args:
        heads: logits per head.
        weights: asked for, one per head. None: equal for heads of one resolution (UNet++), else halved from one
            head to the next (nnU-Net).

    Raises:
        UsageError: when the number of weights is not the number of heads.
    """
    if weights is not None and len(weights) != len(heads):
        raise UsageError(f"head_weights has {len(weights)} values but the model has {len(heads)} heads")
    if weights is None:
        factor = 1.0 if len({head.shape for head in heads}) == 1 else 0.5
        weights = [factor**i for i in range(len(heads))]
    return [w / sum(weights) for w in weights]


def sum_of_heads(
    loss: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor | Sequence[Tensor],
    target: Tensor,
    weights: Sequence[float] | None,
) -> Tensor:
    """Weighted loss of one or more heads; for a head of lower resolution the target is resized to it.

    Args:
        loss: of logits (B, K, *S) and a target (B, 1, *S).
        logits: (B, K, *S), or a sequence of such tensors, finest or best first.
        target: codes (B, 1, *S).
        weights: as for `head_weights`.
    """
    heads = [logits] if isinstance(logits, Tensor) else list(logits)
    shares = head_weights(heads, weights if len(heads) > 1 else None)
    losses = [w * loss(h, resize_labels(target, h.shape[2:])) for w, h in zip(shares, heads, strict=True) if w]
    return torch.stack(losses).sum()


def categorical_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of exclusive classes (B, K, *S), K = 1 one class against the background -> (B, *S) in units of log K."""
    if probabilities.shape[1] == 1:
        probabilities = torch.cat([1 - probabilities, probabilities], 1)
    return torch.special.entr(probabilities).sum(1) / log(probabilities.shape[1])


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour resize by voxel centres. labels: (B, 1, *S) of any integer type -> (B, 1, *size)."""
    for axis, (have, want) in enumerate(zip(labels.shape[2:], size, strict=True), start=2):
        if have != want:
            centres = (torch.arange(want, device=labels.device, dtype=torch.float64) + 0.5) * (have / want)
            labels = labels.index_select(axis, centres.long())
    return labels
