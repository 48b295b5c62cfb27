"""Datasets on disk, read in place: nnU-Net v2 raw, Medical Segmentation Decathlon, or plain folders of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.data.case_files import channel_paths, describe_missing, group_images, image_files, inside, label_files, stem
from medseg.data.label_names import LabelTable, parse_labels
from medseg.data.landmark_files import LandmarkLayout, find_landmarks
from medseg.data.metadata import read_metadata
from medseg.errors import BadDataset, UsageError, nearest
from medseg.io import file_ending, read_json
from medseg.io.endings import IMAGE_ENDINGS

logger = logging.getLogger(__name__)

PLAIN_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"), ("images", "masks"))


@dataclass(frozen=True)
class Case:
    """One subject or scan.

    Attributes:
        id: unique name, also the stem of its prediction.
        images: one file per channel, or one file with all channels.
        label: label map; None for a case without reference.
        metadata: columns of the dataset's table, e.g. patient and site.
        landmarks: .npy or .csv file with its points, see `medseg.data.landmark_files`.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    landmarks: Path | None = None


@dataclass(frozen=True)
class SegmentationDataset:
    """What a dataset holds; voxels are not read.

    Attributes:
        labels: class name -> value, with the background, without the ignore label.
        regions: name -> label values of overlapping regions, if the dataset declares any.
        training: cases with labels.
        test: cases kept apart, with labels or without.
        spatial_dims: 2 or 3.
        synthetic: True for generated data.
        regions_class_order: value that each region, in order, paints into a label map.
        landmarks: what the points of its landmark files belong to, if a landmarks.json says so.
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
    regions_class_order: tuple[int, ...] | None = None
    landmarks: LandmarkLayout | None = None

    def case(self, case_id: str) -> Case:
        """The case of that id. Raises UsageError with the nearest known id."""
        known = {case.id: case for case in (*self.test, *self.training)}
        if case_id in known:
            return known[case_id]
        raise UsageError(f"dataset {self.name} has no case '{case_id}': {nearest(case_id, list(known)[:50])}")


def open_dataset(path: str | Path, *, strict: bool = True) -> SegmentationDataset:
    """Open a dataset folder, or the dataset.json in it.

    Three forms are known: nnU-Net v2 raw (``imagesTr/CASE_0000.nii.gz``, or ``CASE.nii.gz`` for a single channel),
    the Medical Segmentation Decathlon (a ``training`` list), and folders ``imagesTr``/``labelsTr`` or
    ``images``/``labels`` (or ``masks``) without a dataset.json, whose label values are then found by reading them all.

    Args:
        path: folder or dataset.json.
        strict: refuse a dataset of which a training file is missing; ``medseg check`` opens it to list them all.

    Raises:
        BadDataset: a folder of no known form, a dataset.json that lacks what is needed or names files outside the
            folder, or missing files; the nearest name is given.
        UnreadableFile: a dataset.json that is not JSON.
    """
    root = Path(path).expanduser()
    root = root.parent if root.name == "dataset.json" else root
    if not root.is_dir():
        raise BadDataset("there is no such folder", path=root, fix="check the path given as data=")
    file = root / "dataset.json"
    if not file.exists():
        dataset = _open_plain(root)
    else:
        description = read_json(file)
        if not isinstance(description, dict):
            raise BadDataset("expected an object with 'labels'", path=file)
        is_decathlon = isinstance(description.get("training"), list)
        dataset = _open_decathlon(root, description) if is_decathlon else _open_nnunet(root, description)
    dataset = _with_landmarks(dataset)
    _check(dataset, strict)
    return dataset


def _open_nnunet(root: Path, description: Mapping[str, Any]) -> SegmentationDataset:
    file, table = root / "dataset.json", parse_labels(description, root / "dataset.json")
    channels = _channel_names(description.get("channel_names", description.get("modality")), file)
    explicit = description.get("dataset")
    if isinstance(explicit, dict):
        training = [_listed_case(root, entry, file, name) for name, entry in sorted(explicit.items())]
        test: list[Case] = []
    else:
        training, test = _cases(root, ("imagesTr", "labelsTr"), len(channels), description.get("file_ending"))
    return _dataset(root, description, channels, table, training, test)


def _open_decathlon(root: Path, description: Mapping[str, Any]) -> SegmentationDataset:
    file, table = root / "dataset.json", parse_labels(description, root / "dataset.json")
    channels = _channel_names(description.get("modality", description.get("channel_names")), file)
    training = [_listed_case(root, entry, file) for entry in description["training"]]
    test = [_listed_case(root, entry, file) for entry in description.get("test") or []]
    return _dataset(root, description, channels, table, training, test)


def _open_plain(root: Path) -> SegmentationDataset:
    """Images and labels without a description: channels from the first image, labels from all label maps."""
    from medseg.data.scan import scan_channels, scan_labels

    folders = next((pair for pair in PLAIN_FOLDERS if all((root / part).is_dir() for part in pair)), None)
    if folders is None:
        inner = next((sub.parent for sub in sorted(root.glob("*/dataset.json"))), None)
        fix = (
            f"give {inner}" if inner else "give a folder with imagesTr, labelsTr and dataset.json (nnU-Net, Decathlon)"
        )
        raise BadDataset("there is no dataset.json", path=root, fix=fix)
    training, test = _cases(root, folders, 1, None)
    labelled = [case for case in training if case.label]
    if not labelled:
        raise BadDataset("no image has a label file of its name", path=root, fix="name them alike")
    logger.info("%s has no dataset.json: reading every label map to find the classes", root)
    channels, table = scan_channels(labelled[0]), LabelTable(scan_labels(labelled))
    return _dataset(root, {}, channels, table, training, test)


def _dataset(
    root: Path,
    description: Mapping[str, Any],
    channels: tuple[str, ...],
    table: LabelTable,
    training: Sequence[Case],
    test: Sequence[Case],
) -> SegmentationDataset:
    if not training:
        raise BadDataset("there is no training image", path=root, fix="put images into imagesTr, labels into labelsTr")
    rows = read_metadata(root)
    ending = file_ending(training[0].images[0])
    return SegmentationDataset(
        name=str(description.get("name") or root.resolve().name),
        root=root,
        channel_names=channels,
        labels=table.labels,
        ignore_label=table.ignore_label,
        regions=table.regions,
        training=tuple(replace(case, metadata=rows.get(case.id, {})) for case in training if case.label),
        test=tuple(replace(case, metadata=rows.get(case.id, {})) for case in test),
        spatial_dims=2 if ending in IMAGE_ENDINGS else 3,
        file_ending=ending,
        synthetic=bool(description.get("synthetic", False)),
        regions_class_order=table.regions_class_order,
    )


def _with_landmarks(dataset: SegmentationDataset) -> SegmentationDataset:
    """Cases with the landmark files that lie beside their images, if there are any."""
    found = find_landmarks(dataset.root)
    if not found.files and found.layout is None:
        return dataset
    training, test = (
        tuple(replace(case, landmarks=found.files.get(case.id)) for case in part)
        for part in (dataset.training, dataset.test)
    )
    return replace(dataset, training=training, test=test, landmarks=found.layout)


def _cases(root: Path, folders: tuple[str, str], channels: int, ending: object) -> tuple[list[Case], list[Case]]:
    """Cases of imagesTr with labelsTr, and of imagesTs with labelsTs."""
    files = image_files(root / folders[0])
    if ending and files and not any(file.name.lower().endswith(str(ending).lower()) for file in files):
        found = ", ".join(sorted({file_ending(file) for file in files}))
        problem = f"file_ending is '{ending}', but {folders[0]} holds {found}"
        raise BadDataset(problem, path=root / "dataset.json", fix="correct file_ending")
    wanted = [file for file in files if not ending or file.name.lower().endswith(str(ending).lower())]
    labels, test_labels = label_files(root / folders[1]), label_files(root / "labelsTs")
    grouped = group_images(wanted, labels)
    suffixed = any(set(found) != {0} or f"{case}_0000" == stem(found[0]) for case, found in grouped.items())
    test = group_images(image_files(root / "imagesTs"), test_labels, suffixed=suffixed)
    return _with_labels(grouped, labels, channels), _with_labels(test, test_labels, channels)


def _with_labels(grouped: Mapping[str, Mapping[int, Path]], labels: Mapping[str, Path], channels: int) -> list[Case]:
    one_file_each = all(set(found) == {0} for found in grouped.values())  # RGB or 4D: all channels in it
    count = 1 if one_file_each else channels
    return [Case(name, channel_paths(found, name, count), labels.get(name)) for name, found in sorted(grouped.items())]


def _listed_case(root: Path, entry: Any, file: Path, name: str | None = None) -> Case:
    """A case that dataset.json lists: {"image": path, "label": path}, {"images": [...], "label": ...} or a path."""
    given = entry if isinstance(entry, dict) else {"image": entry}
    images = given.get("images", given.get("image"))
    paths = tuple(inside(root, path, file) for path in (images if isinstance(images, list) else [images]))
    label = inside(root, given["label"], file) if given.get("label") else None
    return Case(name or stem(paths[0]), paths, label)


def _channel_names(given: Any, file: Path) -> tuple[str, ...]:
    if not isinstance(given, dict) or not given or not all(str(key).isdigit() for key in given):
        raise BadDataset(f"'channel_names' is {given!r}", path=file, fix='give e.g. "channel_names": {"0": "CT"}')
    return tuple(str(given[key]) for key in sorted(given, key=int))


def _check(dataset: SegmentationDataset, strict: bool) -> None:
    ids = [case.id for case in dataset.training]
    if len(set(ids)) < len(ids):
        twice = next(case for case in ids if ids.count(case) > 1)
        raise BadDataset(f"two training cases are called '{twice}'", path=dataset.root, fix="name the files apart")
    if not strict:
        return
    if not dataset.training:
        raise BadDataset("no training image has a label file", path=dataset.root, fix="name images and labels alike")
    for case in dataset.training:
        for path in (*case.images, *filter(None, [case.label])):
            if not path.is_file():
                raise BadDataset(describe_missing(path), case=case.id, path=path, fix="run medseg check for all faults")
