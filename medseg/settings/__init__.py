"""Settings: the composed config of a verb as one frozen, typed object, refused in one line before anything is read.

The values stand in ``configs/``; what they may be stands here. `settings_of` is the door of the command line, and
``TrainSettings.of(config)`` and its like that of the functions that Python calls with a config.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.settings.base import Settings

CLASSES = {  # verb -> module and class; a verb imports its own only
    "check": ("dataset_verbs", "CheckSettings"),
    "prepare": ("dataset_verbs", "PrepareSettings"),
    "pretrain": ("training_verbs", "PretrainSettings"),
    "train": ("training_verbs", "TrainSettings"),
    "adapt": ("training_verbs", "AdaptSettings"),
    "predict": ("inference_verbs", "PredictSettings"),
    "evaluate": ("evaluation_verbs", "EvaluateSettings"),
    "compare": ("evaluation_verbs", "CompareSettings"),
    "export": ("inference_verbs", "ExportSettings"),
    "models": ("listing_verbs", "ModelsSettings"),
    "skips": ("listing_verbs", "SkipsSettings"),
}


def settings_class(verb: str) -> type[Settings]:
    """The class of a verb's settings."""
    module, name = CLASSES[verb]
    return getattr(importlib.import_module(f"medseg.settings.{module}"), name)


def settings_of(verb: str, config: Mapping[str, Any]) -> Settings:
    """The settings of a verb from its composed config.

    Raises:
        UsageError: one line that names the key, its value and what is expected.
    """
    return settings_class(verb).of(config)
