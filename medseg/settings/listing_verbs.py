"""Settings of ``medseg models`` and ``skips``."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

from medseg.settings.base import Settings, Text
from medseg.settings.parts import ModelPart
from medseg.settings.training_verbs import Plugins

Channels = Annotated[int, Ge(1), Le(4096)]


class ModelsSettings(Settings):
    """The keys of ``configs/models.yaml``."""

    pattern: Text | None
    plugins: Plugins
    debug: bool


class SkipsSettings(Settings):
    """The keys of ``configs/skips.yaml``."""

    model: ModelPart
    spatial_dims: Annotated[int, Ge(2), Le(3)]
    in_channels: Channels
    out_channels: Channels
    plugins: Plugins
    debug: bool
