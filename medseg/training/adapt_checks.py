"""What ``medseg adapt`` refuses before it touches a file."""

from __future__ import annotations

from pathlib import Path

from medseg.blocks.skip.scale import check_search
from medseg.data.dataset import SegmentationDataset
from medseg.data.plan import Plan
from medseg.errors import BadDataset, UsageError
from medseg.io import find_adapter, holds_onnx, read_json
from medseg.training.run_folder import RunFolder
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


def check_resumed(cfg: Config, run: RunFolder) -> None:
    """Refuse to go on with what another model, method or part was trained for.

    Raises:
        UsageError: a setting differs from the one in the run's config.
    """
    old = read_json(run.config) if run.config.exists() else cfg
    for key in ("method", "skips", "train", "model"):
        own, other = (Path(c[key]).resolve() if key == "model" else c.get(key) for c in (cfg, old))
        if own != other:
            problem = f"resume=true: {key} is {own}, the run in this folder has {other}"
            raise UsageError(problem, path=run.path, fix="give the same settings, or choose another run_dir=")


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
