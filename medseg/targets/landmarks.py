"""Landmarks: points with a fixed number and order for each structure, linked by edges that never change.

The loss is HybridGNet's (Gaggion et al. 2022, arXiv 2203.10977), with its weights as in the official code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medseg.blocks.graph import Edges, pooling, ring_edges, scaled_laplacian
from medseg.errors import BadLabels, UsageError
from medseg.models.hybridgnet import GraphOutput
from medseg.targets.base import TARGETS, build_target
from medseg.targets.contours import Structure, mask_points, paint


@TARGETS.register("landmarks")
class Landmarks:
    """Points (x, y) in units of the image's width and height; filled, they are a label map.

    Args:
        structures: name -> number of landmarks, in the order of the points.
        labels: class name -> label value, background included, of the label maps.
        values: structure -> label value that it paints, over those of earlier structures. None: the label of the same
            name; where there is only one foreground label, that one.
        edges: pairs of landmarks; None makes a ring of every structure. Structures with the ring among their edges are
            filled, of others the edges are drawn.
        from_masks: learn from label maps alone: the landmarks are spread evenly on each structure's outline, from
            above its centre on, clockwise as seen on the screen. Structures that share a label value are its largest
            pieces, from the left to the right of the image.
        kl_weight: of the divergence of the latent vector from a normal distribution, taken as a mean.
        ignore_label: None; points know no ignored voxels.

    Raises:
        UsageError: no structures, values that are no labels, edges that leave a structure.
    """

    name = "landmarks"
    dense = False
    channels: tuple[tuple[int, ...], ...] = ()
    mirrors = False  # a mirrored right lung would have to be called the left one, in another order

    def __init__(
        self,
        *,
        structures: Mapping[str, int] | None = None,
        labels: Mapping[str, int],
        values: Mapping[str, int] | None = None,
        edges: Edges | None = None,
        from_masks: bool = False,
        kl_weight: float = 1e-5,
        ignore_label: int | None = None,
    ) -> None:
        if not structures:
            fix = (
                "put landmarks.json beside the images, or set e.g. target.structures='{right lung: 44, left lung: 50}'"
            )
            raise UsageError("target landmarks needs the number of points of each structure", fix=fix)
        if ignore_label is not None:
            raise UsageError(f"target landmarks knows no ignore label ({ignore_label})")
        self.labels = {name: int(value) for name, value in labels.items()}
        self.counts = {name: int(count) for name, count in structures.items()}
        if min(self.counts.values()) < 1:
            raise UsageError(f"target.structures is {self.counts} (every structure needs a point)")
        self.given_values = None if values is None else dict(values)
        self.edges = None if edges is None else [(int(a), int(b)) for a, b in edges]
        self.structures = _structures(self.counts, self._values(), self.edges)
        self.from_masks, self.kl_weight = from_masks, kl_weight
        self.total = sum(self.counts.values())
        self.out_channels = self.probability_channels = 1
        self.head_start = None
        self.supervision, self.points = ("label", 0) if from_masks else ("points", self.total)
        self.layout = {"structures": dict(self.counts), "edges": self.model_arguments()["edges"]}
        self._pool = pooling(list(self.counts.values()))
        scaled_laplacian(self.total, self.edges or ())  # refuses edges to points that are not there

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """What is scored as masks: every class but the background."""
        return {name: (value,) for name, value in self.labels.items() if value}

    def entropy(self, probabilities: Tensor) -> Tensor:
        """Raises UsageError: points are no probabilities."""
        raise UsageError("a model of landmarks has no uncertainty map", fix="leave uncertainty out")

    def swapped(self, pairs: Sequence[Sequence[int]]) -> list[int]:
        """Raises UsageError: landmarks are never mirrored."""
        raise UsageError("landmarks cannot be mirrored", fix="predict without tta (tta=false)")

    def model_arguments(self) -> dict[str, Any]:
        """Landmarks per structure, and the edges."""
        edges = None if self.edges is None else [list(edge) for edge in self.edges]
        return {"structures": list(self.counts.values()), "edges": edges}

    def output_shape(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """(N, 2)."""
        return self.total, 2

    def encode(self, label: Tensor) -> Tensor:
        """Points (B, N, 2), or label values (B, 1, H, W) if they are learnt from masks -> points (B, N, 2).

        Points of a structure that a label map lacks are NaN, and not learnt.

        Raises:
            BadLabels: another number of points, or points that are not finite.
        """
        if self.from_masks:
            maps = label[:, 0].cpu().numpy()
            found = torch.stack([torch.from_numpy(mask_points(one, self.structures)) for one in maps])
            return found.to(label.device)
        if label.shape[1:] != (self.total, 2):
            listed = ", ".join(f"{name} {count}" for name, count in self.counts.items())
            raise BadLabels(
                f"the cases have {label.shape[1]} landmarks (expected {self.total}: {listed})",
                fix="correct target.structures or the files",
            )
        if not label.isfinite().all():
            raise BadLabels("landmarks are not finite", fix="run medseg check")
        return label

    def loss(self, logits: Tensor | GraphOutput, target: Tensor) -> Tensor:
        """Squared error of the points, of the positions where skips looked, and the latent vector's divergence.

        Args:
            logits: points (B, N, 2), or what HybridGNet returns in training; of positions on the coarse graph the
                target is the mean of each pair of points.
            target: what `encode` returned, (B, N, 2).
        """
        if isinstance(logits, Tensor):
            return self._error(logits, target)
        errors = [self._error(found, target) for found in (logits.points, *logits.positions)]
        return torch.stack(errors).sum() + self.kl_weight * kl_divergence(logits.mean, logits.log_variance)

    def activate(self, logits: Tensor) -> Tensor:
        """Points (B, N, 2) as they are, in float32: a structure may reach beyond the image."""
        return logits.float()

    def decode(self, probabilities: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Points (B, N, 2) -> filled structures as label values (B, *size).

        Args:
            probabilities: points in units of the width and height.
            size: rows and columns.
        """
        if size is None:
            raise UsageError("landmarks are decoded to a label map of a given size")
        scale = probabilities.new_tensor([size[1], size[0]])
        pixels = (probabilities * scale).detach().cpu().numpy()
        dtype = next(
            t for t in (torch.uint8, torch.int16, torch.int32) if max(self.labels.values()) <= torch.iinfo(t).max
        )
        maps = [torch.from_numpy(paint(one, self.structures, size)).to(dtype) for one in pixels]
        return torch.stack(maps).to(probabilities.device)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `medseg.targets.build_target`."""
        return {
            "name": self.name,
            "structures": dict(self.counts),
            "labels": dict(self.labels),
            "values": None if self.given_values is None else dict(self.given_values),
            "edges": self.model_arguments()["edges"],
            "from_masks": self.from_masks,
            "kl_weight": self.kl_weight,
            "ignore_label": None,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """A target is its description."""
        return build_target, (self.to_dict(),)

    def _error(self, found: Tensor, target: Tensor) -> Tensor:
        """Mean squared error over the coordinates that the target has."""
        known = target.isfinite().to(target.dtype)
        wanted = target.nan_to_num()
        if found.shape[1] != target.shape[1]:
            pool = self._pool.to(target)
            wanted, known = pool @ wanted, ((pool @ known) > 1 - 1e-4).to(target.dtype)
        return ((found.float() - wanted).square() * known).sum() / known.sum().clamp(min=1)

    def _values(self) -> list[int]:
        """Label value of each structure."""
        foreground = [value for value in self.labels.values() if value]
        only = foreground[0] if len(foreground) == 1 else None
        given = self.given_values if self.given_values is not None else {}
        found = {name: given.get(name, self.labels.get(name, only)) for name in self.counts}
        unknown = [name for name, value in found.items() if value not in self.labels.values()]
        if unknown or set(given) - set(self.counts):
            raise UsageError(
                f"structure '{(unknown or sorted(set(given) - set(self.counts)))[0]}' has no label value "
                f"(structures {', '.join(self.counts)}; labels {self.labels})",
                fix="set target.values, e.g. '{right lung: 1, left lung: 1}'",
            )
        return [int(value) for value in found.values() if value is not None]


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of N(mean, exp(log_variance)) from N(0, 1), a mean over batch and latent as in the official code.

    The textbook's sum over the latent is larger by its length, 64.
    """
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()


def _structures(counts: Mapping[str, int], values: Sequence[int], edges: Edges | None) -> tuple[Structure, ...]:
    found, start = [], 0
    for (name, count), value in zip(counts.items(), values, strict=True):
        members = range(start, start + count)
        own = None if edges is None else [(a, b) for a, b in edges if a in members or b in members]
        if own is not None and any(a not in members or b not in members for a, b in own):
            raise UsageError(f"an edge leaves structure '{name}' (points {start} to {start + count - 1})")
        ring = {frozenset(edge) for edge in ring_edges([count])}
        inner = None if own is None else [(a - start, b - start) for a, b in own]
        filled = inner is None or ring <= {frozenset(edge) for edge in inner}
        found.append(Structure(name, start, count, value, None if filled or inner is None else tuple(inner)))
        start += count
    return tuple(found)
