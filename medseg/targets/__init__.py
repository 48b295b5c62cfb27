"""What labels mean. Training, the predictor, ensembles and the evaluator speak to a `Target` only."""

from medseg.targets.base import TARGETS, Target, build_target
from medseg.targets.exclusive import ExclusiveClasses
from medseg.targets.nested import NestedClasses
from medseg.targets.regions import Regions

__all__ = ["TARGETS", "ExclusiveClasses", "NestedClasses", "Regions", "Target", "build_target"]
