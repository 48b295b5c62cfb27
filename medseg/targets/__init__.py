"""What labels mean. Training, the predictor, ensembles and the evaluator speak to a `Target` only."""

from medseg.targets.base import TARGETS, Target, build_target
from medseg.targets.exclusive import ExclusiveClasses

__all__ = ["TARGETS", "ExclusiveClasses", "Target", "build_target"]
