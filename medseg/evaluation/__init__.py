"""Metrics with one definition each, an evaluator for folders, and its report."""

from medseg.evaluation.arrays import evaluate_arrays
from medseg.evaluation.command import evaluate_command, evaluate_folders
from medseg.evaluation.evaluator import Evaluator
from medseg.evaluation.folders import CaseFiles, pair_folders
from medseg.evaluation.landmarks import evaluate_landmarks
from medseg.evaluation.metrics import METRICS, Metric
from medseg.evaluation.report import Report

__all__ = [
    "METRICS",
    "CaseFiles",
    "Evaluator",
    "Metric",
    "Report",
    "evaluate_arrays",
    "evaluate_command",
    "evaluate_folders",
    "evaluate_landmarks",
    "pair_folders",
]
