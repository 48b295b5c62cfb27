"""Inference: a model folder and an image file become a segmentation in the file's own grid."""

from medseg.inference.predict import predict_cases, predict_folder
from medseg.inference.predictor import Predictor
from medseg.inference.segmentation import Segmentation

__all__ = ["Predictor", "Segmentation", "predict_cases", "predict_folder"]
