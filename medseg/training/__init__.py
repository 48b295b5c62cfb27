"""Training: `fit` turns a config into a model folder. pytorch-lightning is imported when training starts."""

from medseg.training.fitting import fit, train_command

__all__ = ["fit", "train_command"]
