"""Metrics with one definition each, an evaluator for folders, and its report."""

from medseg.evaluation.arrays import evaluate_arrays
from medseg.evaluation.command import evaluate_command, evaluate_folders
from medseg.evaluation.comparison import Comparison, compare
from medseg.evaluation.evaluator import Evaluator
from medseg.evaluation.folders import CaseFiles, pair_folders
from medseg.evaluation.intervals import Interval, bootstrap_interval
from medseg.evaluation.landmark_report import report_landmarks
from medseg.evaluation.landmarks import evaluate_landmarks
from medseg.evaluation.metrics import METRICS, Metric
from medseg.evaluation.ranking import Ranking, rank
from medseg.evaluation.report import Report
from medseg.evaluation.statistics import seed_variance, smallest_difference, stratify

__all__ = [
    "METRICS",
    "CaseFiles",
    "Comparison",
    "Evaluator",
    "Interval",
    "Metric",
    "Ranking",
    "Report",
    "bootstrap_interval",
    "compare",
    "evaluate_arrays",
    "evaluate_command",
    "evaluate_folders",
    "evaluate_landmarks",
    "pair_folders",
    "rank",
    "report_landmarks",
    "seed_variance",
    "smallest_difference",
    "stratify",
]
