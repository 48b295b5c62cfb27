"""medseg: medical image segmentation. Public names are loaded when first used, so importing medseg is instant."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medseg.evaluation import Evaluator, evaluate_arrays
    from medseg.inference import Predictor, Segmentation
    from medseg.io import Volume, read_volume
    from medseg.models import create_model, list_models
    from medseg.training import fit

_HOME = {
    "create_model": "medseg.models",
    "list_models": "medseg.models",
    "Predictor": "medseg.inference",
    "Segmentation": "medseg.inference",
    "Evaluator": "medseg.evaluation",
    "evaluate_arrays": "medseg.evaluation",
    "Volume": "medseg.io",
    "read_volume": "medseg.io",
    "fit": "medseg.training",
}

__all__ = [
    "Evaluator",
    "Predictor",
    "Segmentation",
    "Volume",
    "__version__",
    "create_model",
    "evaluate_arrays",
    "fit",
    "list_models",
    "read_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'medseg' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
