"""What labels mean. Training, the predictor, ensembles and the evaluator speak to a `Target` only."""

from medseg.targets.base import TARGETS, DenseTarget, Target, build_target
from medseg.targets.exclusive import ExclusiveClasses
from medseg.targets.landmarks import Landmarks
from medseg.targets.nested import NestedClasses
from medseg.targets.regions import Regions

__all__ = [
    "TARGETS",
    "DenseTarget",
    "ExclusiveClasses",
    "Landmarks",
    "NestedClasses",
    "Regions",
    "Target",
    "build_target",
]
