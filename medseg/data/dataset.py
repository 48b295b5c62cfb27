"""Datasets on disk, read in place: nnU-Net v2 raw folders and Medical Segmentation Decathlon folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.errors import BadDataset, UsageError, nearest
from medseg.io import KNOWN_ENDINGS, file_ending, read_json

FLAT_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
IGNORE_NAME = "ignore"


@dataclass(frozen=True)
class Case:
    """One subject or scan.

    Attributes:
        id: unique name, also the stem of its prediction.
        images: one file per channel, or one file with all channels.
        label: label map; None for a case without reference.
        metadata: columns of the dataset's table, e.g. patient and site.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SegmentationDataset:
    """What a dataset holds; files are not opened.

    Attributes:
        labels: class name -> value, with the background, without the ignore label.
        regions: name -> label values of overlapping regions, if the dataset declares any.
        training: cases with labels.
        test: cases kept apart, with labels or without.
        spatial_dims: 2 or 3.
        synthetic: True for generated data.
    """

    name: str
    root: Path
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    ignore_label: int | None
    regions: dict[str, tuple[int, ...]] | None
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    spatial_dims: int
    file_ending: str
    synthetic: bool = False

    def case(self, case_id: str) -> Case:
        """The case of that id. Raises UsageError with the nearest known id."""
        for case in (*self.training, *self.test):
            if case.id == case_id:
                return case
        known = [case.id for case in (*self.training, *self.test)]
        raise UsageError(f"dataset {self.name} has no case '{case_id}': {nearest(case_id, known[:50])}")


def open_dataset(path: str | Path) -> SegmentationDataset:
    """Open a dataset folder, or the dataset.json in it.

    Raises:
        BadDataset: no dataset.json, or one that lacks what is needed or names files outside the folder.
        UnreadableFile: a dataset.json that is not JSON.
    """
    root = Path(path).expanduser()
    root = root.parent if root.name == "dataset.json" else root
    if not root.is_dir():
        raise BadDataset("there is no such folder", path=root, fix="check the path given as data=")
    file = root / "dataset.json"
    if not file.exists():
        fix = "give a folder in nnU-Net raw form (imagesTr, labelsTr, dataset.json) or of the Medical Decathlon"
        raise BadDataset("there is no dataset.json", path=root, fix=fix)
    description = read_json(file)
    if not isinstance(description, dict) or not isinstance(description.get("labels"), dict):
        raise BadDataset("'labels' is missing (expected name: number)", path=file)
    is_decathlon = isinstance(description.get("training"), list)
    return _open_decathlon(root, description) if is_decathlon else _open_nnunet(root, description)


def _open_nnunet(root: Path, description: Mapping[str, Any]) -> SegmentationDataset:
    channels = description.get("channel_names", description.get("modality"))
    if not isinstance(channels, dict) or not channels:
        raise BadDataset("'channel_names' is missing", path=root / "dataset.json", fix='e.g. {"0": "MRI"}')
    names = tuple(str(channels[key]) for key in sorted(channels, key=int))
    labels, regions, ignore = _nnunet_labels(description["labels"], root / "dataset.json")
    ending = str(description.get("file_ending") or _found_ending(root / "imagesTr"))
    explicit = description.get("dataset")
    training = _explicit_cases(root, explicit) if isinstance(explicit, dict) else _cases(root, "Tr", ending)
    if not training:
        raise BadDataset(f"imagesTr holds no file that ends in {ending}", path=root, fix="check file_ending")
    return SegmentationDataset(
        name=str(description.get("name") or root.name),
        root=root,
        channel_names=names,
        labels=labels,
        ignore_label=ignore,
        regions=regions,
        training=tuple(case for case in training if case.label),
        test=tuple(_cases(root, "Ts", ending)),
        spatial_dims=2 if ending in FLAT_ENDINGS else 3,
        file_ending=ending,
        synthetic=bool(description.get("synthetic", False)),
    )


def _open_decathlon(root: Path, description: Mapping[str, Any]) -> SegmentationDataset:
    modality = description.get("modality") or {"0": "image"}
    labels = {str(name): _number(value, root / "dataset.json") for value, name in description["labels"].items()}
    training = [_decathlon_case(root, entry) for entry in description["training"]]
    if not training:
        raise BadDataset("'training' is empty", path=root / "dataset.json")
    ending = file_ending(training[0].images[0])
    return SegmentationDataset(
        name=str(description.get("name") or root.name),
        root=root,
        channel_names=tuple(str(modality[key]) for key in sorted(modality, key=int)),
        labels=labels,
        ignore_label=None,
        regions=None,
        training=tuple(training),
        test=tuple(_decathlon_case(root, entry) for entry in description.get("test", [])),
        spatial_dims=2 if ending in FLAT_ENDINGS else 3,
        file_ending=ending,
    )


def _decathlon_case(root: Path, entry: Any) -> Case:
    image = entry["image"] if isinstance(entry, dict) else entry
    label = entry.get("label") if isinstance(entry, dict) else None
    path = _inside(root, image)
    return Case(path.name[: -len(file_ending(path))], (path,), _inside(root, label) if label else None)


def _explicit_cases(root: Path, entries: Mapping[str, Any]) -> list[Case]:
    return [
        Case(case, tuple(_inside(root, image) for image in entry["images"]), _inside(root, entry["label"]))
        for case, entry in sorted(entries.items())
    ]


def _cases(root: Path, part: str, ending: str) -> list[Case]:
    """Files of imagesTr or imagesTs, grouped by case: CASE_0000, CASE_0001, ..., or CASE alone."""
    folder, labels = root / f"images{part}", root / f"labels{part}"
    grouped: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.name.endswith(ending) and not file.name.startswith("."):
            grouped.setdefault(case_id(file, ending), []).append(file)
    return [
        Case(name, tuple(files), label if (label := labels / f"{name}{ending}").exists() else None)
        for name, files in grouped.items()
    ]


def case_id(file: Path, ending: str) -> str:
    """``CASE_0000.nii.gz`` -> ``CASE``; a name without a channel number is the case itself."""
    stem = file.name[: -len(ending)]
    return stem[:-5] if len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdigit() else stem


def _nnunet_labels(
    given: Mapping[str, Any], file: Path
) -> tuple[dict[str, int], dict[str, tuple[int, ...]] | None, int | None]:
    """Single labels, regions (names with a list of values) and the ignore label."""
    if all(str(name).isdigit() and isinstance(value, str) for name, value in given.items()):
        given = {name: int(value) for value, name in given.items()}  # number -> name, as the Decathlon has it
    singles = {str(n): _number(v, file) for n, v in given.items() if not isinstance(v, list)}
    regions = {str(n): tuple(_number(v, file) for v in values) for n, values in given.items() if isinstance(values, list)}
    ignore = singles.pop(IGNORE_NAME, None)
    for value in sorted({v for values in regions.values() for v in values} - set(singles.values())):
        singles[f"label_{value}"] = value
    if 0 not in singles.values():
        raise BadDataset(f"labels {singles} have no background (0)", path=file)
    return singles, regions or None, ignore


def _number(value: Any, file: Path) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise BadDataset(f"label value {value!r} is not a whole number", path=file) from None


def _inside(root: Path, relative: str) -> Path:
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise BadDataset(f"'{relative}' lies outside the dataset", path=root / "dataset.json")
    return path


def _found_ending(folder: Path) -> str:
    endings = {file_ending(f) for f in folder.iterdir() if f.name.lower().endswith(KNOWN_ENDINGS)} if folder.is_dir() else ()
    if len(endings) != 1:
        raise BadDataset(f"'file_ending' is missing and imagesTr has {sorted(endings)}", path=folder)
    return next(iter(endings))
