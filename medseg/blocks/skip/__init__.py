"""Skip paths as parts: what lies between the encoder and the decoder of a U-shaped network, chosen by name.

A path is ``pyramid operations -> edits -> merge``, each found in a registry and built from plain data:

- a `PyramidOperation` sees the features of all levels once per forward pass and keeps every shape;
- a `SkipEdit` sees one skip, and the decoder features that it will meet, and keeps the skip's shape;
- a `SkipMerge` joins a skip with the decoder: the only place where channels may change.

Level 0 is the finest. `medseg.blocks.skip.path.SkipPath` chains them; a model hosts skip paths by taking an argument
`skips` and building one. The drawing and the laws that the tests hold are in ``docs/skips.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.registry import Registry

SkipSettings = str | Mapping[str, Any] | None  # "concat", or {"pyramid": [...], "edit": [...], "merge": ...}


class SkipContext(NamedTuple):
    """What a part may know beside its features.

    Attributes:
        level: of the skip, 0 = finest; for pyramid operations the finest level that they see.
        num_levels: levels that have a skip; level ``num_levels - 1`` is the deepest skip.
        spatial_dims: 2 or 3.
        cond: name -> condition of this batch, see `medseg.blocks.skip.path.skip_conditions`.
        step: of an outer iteration, e.g. a refinement round, if there is one.
    """

    level: int
    num_levels: int
    spatial_dims: int
    cond: Mapping[str, Tensor]
    step: Any = None

    def need(self, name: str, part: str) -> Tensor:
        """A condition. Raises UsageError if the batch lacks it."""
        if name in self.cond:
            return self.cond[name]
        have = ", ".join(sorted(self.cond)) or "none"
        fix = f"call the model within skip_conditions(model, {name}=tensor)"
        raise UsageError(f"skip part '{part}' needs the condition '{name}', the batch has {have}", fix=fix)


class PyramidOperation(nn.Module):
    """``forward(features, context)`` -> features of the same shapes.

    Attributes:
        neutral_at_init: whether a newly built part passes its input on bit for bit.
        conditions_needed: name -> channels of the conditions that it looks at.
    """

    neutral_at_init = False
    conditions_needed: Mapping[str, int] = {}


class SkipEdit(nn.Module):
    """``forward(skip, decoder, context)`` -> (B, C, *S) as the skip; `decoder` is None at the bottleneck.

    Attributes:
        neutral_at_init: whether a newly built part passes its input on bit for bit.
        conditions_needed: name -> channels of the conditions that it looks at.
    """

    neutral_at_init = False
    conditions_needed: Mapping[str, int] = {}


class SkipMerge(nn.Module):
    """``forward(skip, decoder, context)`` of equal batch and spatial shape -> (B, out_channels, *S).

    `out_channels` is set by the constructor.

    Attributes:
        takes_graph: the decoder is (B, N, D), features of N nodes whose coordinates are a condition, not an image.
    """

    out_channels: int
    takes_graph = False


# Factories take what they want of: spatial_dims; for pyramid operations `channels` (one per level) and
# `num_levels`; for edits `channels`, `decoder_channels`, `level`, `num_levels`; for merges `skip_channels`,
# `decoder_channels`, `level`, `num_levels`; and arguments of their own, with defaults.
PYRAMID: Registry[PyramidOperation] = Registry(
    "pyramid operation", "medseg.blocks.skip", group="medseg.blocks.skip.pyramid"
)
EDITS: Registry[SkipEdit] = Registry("skip edit", "medseg.blocks.skip", group="medseg.blocks.skip.edits")
MERGES: Registry[SkipMerge] = Registry("skip merge", "medseg.blocks.skip")
