"""What ``medseg adapt`` refuses before it touches a file."""

from __future__ import annotations

from pathlib import Path

from medseg.blocks.skip.scale import check_search
from medseg.data.dataset import SegmentationDataset
from medseg.data.plan import Plan
from medseg.errors import BadDataset, UsageError
from medseg.io import find_adapter, holds_onnx
from medseg.training.setup import Config


def check_request(cfg: Config, base: Path) -> None:
    """Refuse a base that is no trained model, a run in the base's folder, several folds, and settings without effect.

    Raises:
        UsageError: one of these.
    """
    if find_adapter(base):
        raise UsageError("is an adapter itself", path=base, fix="give the model that it was made of")
    if holds_onnx(base):
        raise UsageError("is an exported model", path=base, fix="give the folder that it was exported from")
    if Path(cfg["run_dir"]).resolve() == base:
        raise UsageError("run_dir is the folder of the model", path=base, fix="choose another run_dir=")
    if cfg["fold"] == "all":
        raise UsageError("fold=all: an adapter is made of one fold", fix="give a number, and adapt once per fold")
    if cfg["method"] == "skip_scale":
        for key in ("skips", "train"):
            if cfg[key]:
                raise UsageError(f"method=skip_scale trains nothing and takes no {key}=", fix=f"leave out {key}=")
        check_search(**cfg["skip_scale"])


def check_site(dataset: SegmentationDataset, plan: Plan) -> None:
    """Refuse a dataset whose labels, channels or dimensions are not the model's."""
    pairs = {
        "labels": (dict(dataset.labels), dict(plan.labels)),
        "channels": (len(dataset.channel_names), len(plan.channel_names)),
        "spatial_dims": (dataset.spatial_dims, plan.spatial_dims),
    }
    for name, (own, wanted) in pairs.items():
        if own != wanted:
            raise BadDataset(
                f"{name} are {own} (the model has {wanted})", path=dataset.root, fix="use data of the task"
            )
