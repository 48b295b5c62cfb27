"""``inference.json`` of a MONAI bundle: a plan and a target in MONAI's transforms, step for step what `Predictor` does.

Strings that start with ``$`` are expressions, which MONAI evaluates, those with ``@`` references. Of the model folder
only numbers enter them, and they are checked to be numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medseg.data.plan import Plan
from medseg.errors import UnreadableFile, UsageError
from medseg.inference.member import Member
from medseg.targets import ExclusiveClasses, NestedClasses, Regions

Config = dict[str, Any]
IMAGE, PRED = {"keys": "image"}, {"keys": "pred"}
ONE_FILE = "$sorted(glob.glob(@dataset_dir + '/*.nii.gz'))"
CHANNEL_FILES = (
    "$[sorted(glob.glob(f[:-11] + '????.nii.gz')) for f in sorted(glob.glob(@dataset_dir + '/*_0000.nii.gz'))]"
)


def inference_config(member: Member) -> Config:
    """The whole of ``configs/inference.json``.

    Raises:
        UsageError: the plan or the target has a feature that MONAI's transforms cannot express; it is named.
    """
    plan = member.plan
    if plan.spatial_dims != 3:
        raise _no("2D models", "their files have no orientation")
    return {
        "imports": ["$import glob", *(["$import scipy.ndimage as ndimage"] if member.postprocessing else [])],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": ONE_FILE if len(plan.channel_names) == 1 else CHANNEL_FILES,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device)",
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": list(_preprocessing(plan))},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [int(_number(n)) for n in plan.patch_size],
            "sw_batch_size": 1,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": list(_postprocessing(member))},
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(plan: Plan) -> Iterator[Config]:
    yield {"_target_": "LoadImaged", **IMAGE}
    yield {"_target_": "EnsureChannelFirstd", **IMAGE}
    yield {"_target_": "Orientationd", **IMAGE, "axcodes": "RAS", "labels": None}
    if plan.crop_nonzero:
        yield {"_target_": "CropForegroundd", **IMAGE, "source_key": "image", "select_fn": "$lambda x: x != 0"}
    yield from _normalization(plan)
    yield {"_target_": "CopyItemsd", **IMAGE, "names": "grid"}
    yield {"_target_": "Lambdad", "keys": "grid", "func": _new_grid(plan), "allow_missing_keys": True}
    yield {"_target_": "ResampleToMatchd", **IMAGE, "key_dst": "grid", "mode": "bilinear", "padding_mode": "border"}
    yield {"_target_": "DeleteItemsd", "keys": "grid"}
    yield {"_target_": "EnsureTyped", **IMAGE, "device": "@device"}


def _new_grid(plan: Plan) -> str:
    """`Plan.grid` as an expression.

    MONAI's Spacing keeps the nominal spacing, so that its grid and ours part by up to half a voxel at the far end. Here
    the outer edges stay where they are and the spacing gives way, as in `medseg.data.resample`.
    """
    fixed = None if plan.size is None else plan.grid((0, 0, 0), plan.spacing)
    sides = []
    for axis, spacing in enumerate(plan.spacing):
        by_spacing = f"max(1, round(x.shape[{axis + 1}] * float(x.pixdim[{axis}]) / {_number(spacing)}))"
        own = by_spacing if fixed is None else str(int(_number(fixed[axis])))
        sides.append(f"x.shape[{axis + 1}]" if axis == plan.slice_axis else own)
    return f"$lambda x: monai.transforms.Resize([{', '.join(sides)}], mode='nearest')(x[:1])"


def _normalization(plan: Plan) -> Iterator[Config]:
    """`medseg.data.normalize`, which has a scheme for each channel; MONAI has one for all, or numbers for each."""
    schemes = plan.normalization
    kinds = {"tissue" if scheme.get("nonzero") else str(scheme["scheme"]) for scheme in schemes}
    if kinds == {"percentile"} and len({str(scheme) for scheme in schemes}) == 1:
        lower, upper = (_number(schemes[0].get(key, value)) for key, value in (("lower", 0.5), ("upper", 99.5)))
        limits = {"lower": lower, "upper": upper, "b_min": 0.0, "b_max": 1.0, "clip": True}
        yield {"_target_": "ScaleIntensityRangePercentilesd", **IMAGE, **limits, "channel_wise": True}
    elif kinds == {"tissue"} and len(schemes) == 1:
        yield {"_target_": "NormalizeIntensityd", **IMAGE, "nonzero": True}
    elif kinds == {"tissue"}:  # MONAI's nonzero looks at each channel alone; tissue is what is not 0 in all of them
        yield {"_target_": "Lambdad", **IMAGE, "func": _TISSUE}
    elif kinds <= {"ct", "zscore", "none"}:
        yield from _by_numbers(schemes)
    else:
        raise _no(f"normalization {' with '.join(sorted(kinds))}", "its transforms treat all channels alike")


_TISSUE = (
    "$lambda x: torch.where((x != 0).any(0), (x - x[:, (x != 0).any(0)].mean(1).view(-1, 1, 1, 1))"
    " / (lambda v, s: s.where(s > 2**-23 * v.abs().amax(1), 1.0))(x[:, (x != 0).any(0)],"
    " x[:, (x != 0).any(0)].std(1, correction=0)).view(-1, 1, 1, 1), 0.0)"
)


def _by_numbers(schemes: Sequence[Mapping[str, Any]]) -> Iterator[Config]:
    """Clip, shift and scale by the plan's numbers; None is the case's own mean and standard deviation."""
    names = [scheme["scheme"] for scheme in schemes]
    if "ct" in names:
        low, high = (
            str([[[[_number(scheme.get(key, other))]]] for scheme in schemes]).replace("inf", "torch.inf")
            for key, other in (("lower", -math.inf), ("upper", math.inf))
        )
        clip = f"$lambda x: x.clamp(torch.tensor({low}), torch.tensor({high}))"
        yield {"_target_": "Lambdad", **IMAGE, "func": clip}
    if set(names) != {"none"}:
        fixed: dict[str, tuple[float | None, float | None]] = {"zscore": (None, None), "none": (0.0, 1.0)}
        pairs = [fixed.get(scheme["scheme"]) or (_number(scheme["mean"]), _number(scheme["std"])) for scheme in schemes]
        shift, scale = zip(*pairs, strict=True)
        numbers = {"subtrahend": list(shift), "divisor": list(scale), "channel_wise": True}
        yield {"_target_": "NormalizeIntensityd", **IMAGE, **numbers}


def _postprocessing(member: Member) -> Iterator[Config]:
    target = member.target
    if not isinstance(target, ExclusiveClasses | Regions | NestedClasses):
        raise _no(f"target '{target.name}'", "its predictions are no label map there")
    yield _activation(target)
    inverted = {"transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False}
    yield {"_target_": "Invertd", **PRED, **inverted}
    yield from _decision(target)
    yield from map(_operation, member.postprocessing)
    dtype = next(name for name, most in (("uint8", 255), ("uint16", 65_535)) if max(target.labels.values()) <= most)
    saved = {
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "separate_folder": False,
        "output_dtype": f"$numpy.{dtype}",
    }
    yield {"_target_": "SaveImaged", **PRED, **saved}


def _activation(target: ExclusiveClasses | Regions | NestedClasses) -> Config:
    if isinstance(target, NestedClasses):
        k, thresholds = _number(target.activation.k), list(map(_number, target.activation.thresholds))
        func = f"$lambda x: torch.cat([torch.sigmoid({k} * (x - t)) for t in {thresholds}])"
        return {"_target_": "Lambdad", **PRED, "func": func}
    kind = "sigmoid" if isinstance(target, Regions) or target.binary else "softmax"
    return {"_target_": "Activationsd", **PRED, kind: True}


def _decision(target: ExclusiveClasses | Regions | NestedClasses) -> Iterator[Config]:
    """Probabilities become places in a list of label values, and these the values."""
    values = target.values if isinstance(target, ExclusiveClasses) else [0, *target.class_order]
    if isinstance(target, NestedClasses):
        yield {"_target_": "Lambdad", **PRED, "func": "$lambda x: (x >= 0.5).sum(0, keepdim=True).float()"}
    elif isinstance(target, Regions):  # the last region that has the voxel lies on top
        numbers = [[[[float(place)]]] for place in range(1, len(values))]
        func = f"$lambda x: ((x >= 0.5) * torch.tensor({numbers}, device=x.device)).amax(0, keepdim=True)"
        yield {"_target_": "Lambdad", **PRED, "func": func}
    else:
        decided = {"threshold": _number(target.threshold)} if target.binary else {"argmax": True}
        yield {"_target_": "AsDiscreted", **PRED, **decided}
    if values != list(range(len(values))):
        places = list(range(len(values)))
        yield {"_target_": "MapLabelValued", **PRED, "orig_labels": places, "target_labels": values}


def _operation(operation: Mapping[str, Any]) -> Config:
    """An operation of `medseg.inference.postprocess`: components across corners, holes across faces."""
    name, value = operation["operation"], int(_number(operation["label"]))
    if name == "largest_component":
        return {"_target_": "KeepLargestConnectedComponentd", **PRED, "applied_labels": value, "connectivity": 3}
    if name == "fill_holes":
        filled = f"ndimage.binary_fill_holes((x[0] == {value}).cpu().numpy())"
        func = f"$lambda x: torch.where((x == 0) & torch.as_tensor({filled}).to(x.device), {value}, x)"
    elif name == "minimum_size":
        settings = f"min_size={1000 * _number(operation['ml'])}, by_measure=True, connectivity=3"
        kept = f"monai.transforms.RemoveSmallObjects({settings})((x == {value}).int())"
        func = f"$lambda x: torch.where((x == {value}) & ({kept} == 0), 0, x)"
    else:
        raise _no(f"post-processing '{name}'", "it has no such operation")
    return {"_target_": "Lambdad", **PRED, "func": func}


def _number(value: Any) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise UnreadableFile(f"the model holds {value!r} (expected a number)", fix="use a folder that medseg train wrote")


def _no(feature: str, why: str) -> UsageError:
    return UsageError(f"a MONAI bundle cannot hold {feature}: {why}", fix="use format=onnx")
