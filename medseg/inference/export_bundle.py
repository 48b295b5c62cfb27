"""A MONAI bundle: a traced network and the configs with which MONAI runs it; nothing in it needs medseg.

MONAI evaluates what its configs hold, so nothing of a model folder enters them but numbers, and names that it does not
take for expressions.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg import __version__
from medseg.data.outputs import keep_account
from medseg.inference.bundle_config import inference_config
from medseg.inference.member import Member
from medseg.io import atomic_path, write_json, write_text
from medseg.targets import ExclusiveClasses, NestedClasses, Regions

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
BUNDLE_FILES = ("models/model.ts", "docs/README.md", "LICENSE", "configs/metadata.json", "configs/inference.json")
IGNITE = "0.4.11"  # what MONAI 1.6 asks of pytorch-ignite
USE = "For research; not cleared for diagnosis."
UNKNOWN = "not stated"
ONE_FILE = "images, `NAME.nii.gz`"
CHANNEL_FILES = "`CASE_0000.nii.gz`, `CASE_0001.nii.gz` and so on for the channels of each case"
README = """# {name}

Segments {labels} in {channels} images; trained on the dataset {dataset}. Exported by medseg {version}.

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir FOLDER --output_dir FOLDER

Run it in this folder. It needs monai, torch, nibabel, pytorch-ignite, fire, and for post-processing scikit-image and
scipy. `--dataset_dir` holds {files}; `--output_dir` receives the label maps, each in the grid of its image, as
`NAME_seg.nii.gz`.

The network (`models/model.ts`, TorchScript) takes patches of {patch} voxels of {spacing} mm, axes to the right, to the
front and up (RAS+), with intensities as `configs/inference.json` normalises them. {use}
"""
LICENSE = """The files under configs/ and docs/ come from medseg {version} and may be used under the Apache License,
Version 2.0 (http://www.apache.org/licenses/LICENSE-2.0).

The weights under models/ were trained on the dataset "{dataset}". They belong to those who trained them, and the terms
of that dataset may bind them. State a licence for them here before you pass them on.
"""


def write_bundle(folder: str | Path, network: bytes, member: Member, description: Mapping[str, Any]) -> None:
    """Write a MONAI bundle; ``configs/inference.json`` comes last: where it is, the bundle is whole.

    Args:
        folder: made if missing.
        network: TorchScript, saved.
        member: that it was made from.
        description: of the model folder.

    Raises:
        UsageError: a feature of the plan or the target that MONAI's transforms cannot express; it is named.
        ResourceError: it cannot be written.
    """
    folder, inference, facts = Path(folder), inference_config(member), _facts(member)
    keep_account(folder, BUNDLE_FILES)
    weights, readme, terms, described, configured = (folder / file for file in BUNDLE_FILES)
    with atomic_path(weights) as path:
        path.write_bytes(network)
    write_text(readme, README.format_map(facts))
    write_text(terms, LICENSE.format_map(facts))
    write_json(described, metadata(member, description))
    write_json(configured, inference)


def metadata(member: Member, description: Mapping[str, Any]) -> dict[str, Any]:
    """``configs/metadata.json``, with all keys of MONAI's schema; what a model folder does not know is "not stated"."""
    plan, facts = member.plan, _facts(member)
    names = {value: _harmless(name) for name, value in plan.labels.items()}
    metrics = {name: value for name, value in description.get("metrics", {}).items() if _is_number(value)}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by medseg {__version__}"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {"nibabel": _version("nibabel"), "pytorch-ignite": IGNITE},
        "name": facts["name"],
        "task": f"Segmentation of {facts['labels']}",
        "description": f"{description['model']['name']}, trained with medseg on {facts['dataset']}",
        "authors": UNKNOWN,
        "copyright": UNKNOWN,
        "data_source": facts["dataset"],
        "data_type": "nibabel",
        "image_classes": f"channels {facts['channels']}, normalised as in inference.json",
        "label_classes": ", ".join(f"{value}: {names[value]}" for value in sorted(names)),
        "pred_classes": _meaning_of_logits(member),
        "eval_metrics": metrics,
        "intended_use": USE,
        "references": [],
        "network_data_format": _data_format(member, _output_names(member), facts["channels"]),
    }


def _data_format(member: Member, classes: Sequence[str], modality: str) -> dict[str, Any]:
    plan = member.plan
    inputs = dict(enumerate(map(_harmless, plan.channel_names)))
    outputs = dict(enumerate(classes))
    unit = "hounsfield" if any(scheme["scheme"] == "ct" for scheme in plan.normalization) else "magnitude"
    patch = {"type": "image", "spatial_shape": list(plan.patch_size), "dtype": "float32", "value_range": []}
    image = {"format": unit, "modality": modality, "num_channels": len(inputs), "channel_def": inputs}
    pred = {"format": "labels", "num_channels": len(outputs), "channel_def": outputs}
    return {
        "inputs": {"image": {**patch, **image, "is_patch_data": True}},
        "outputs": {"pred": {**patch, **pred, "is_patch_data": True}},
    }


def _output_names(member: Member) -> list[str]:
    """What each channel of logits stands for."""
    target = member.target
    if isinstance(target, NestedClasses):
        return [target.name]
    if not isinstance(target, ExclusiveClasses):
        return [_harmless(name) for name in target.classes]
    named = {value: name for name, value in target.labels.items()}
    return [_harmless(named[value]) for value in target.values[-target.out_channels :]]


def _meaning_of_logits(member: Member) -> str:
    if isinstance(member.target, NestedClasses):
        return f"one logit; its thresholds are the borders of {', '.join(map(_harmless, member.target.classes))}"
    return f"logits, one channel per {'region' if isinstance(member.target, Regions) else 'class'}"


def _facts(member: Member) -> dict[str, str]:
    plan = member.plan
    files = ONE_FILE if len(plan.channel_names) == 1 else CHANNEL_FILES
    return {
        "name": f"{_harmless(plan.dataset)} segmentation",
        "version": __version__,
        "dataset": _harmless(plan.dataset),
        "labels": ", ".join(name for name, value in plan.labels.items() if value),
        "channels": _harmless(", ".join(plan.channel_names)),
        "files": files,
        "patch": " x ".join(map(str, plan.patch_size)),
        "spacing": " x ".join(f"{mm:g}" for mm in plan.spacing),
        "use": USE,
    }


def _harmless(name: str) -> str:
    """Without the signs that begin MONAI's expressions, references and macros."""
    return name.lstrip("$@%")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _version(package: str) -> str:
    """Installed version, without a local part such as +cpu."""
    return importlib.metadata.version(package).partition("+")[0]
