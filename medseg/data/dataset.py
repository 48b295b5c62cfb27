"""Datasets on disk, read in place: nnU-Net v2 raw, Decathlon, folders of images and masks, or a list in a table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg.data.case import Case
from medseg.data.case_files import describe_missing, group_images, image_files, inside, label_files, of_ending, stem
from medseg.data.case_list import LIST_ENDINGS, read_list
from medseg.data.color import CHANNELS, checked_color
from medseg.data.description import DatasetDescription, ListedCase, describe, read_description
from medseg.data.label_codes import chosen_threshold, parse_masks
from medseg.data.label_names import LabelTable, parse_labels
from medseg.data.landmark_files import LandmarkLayout, find_landmarks
from medseg.data.layouts import Layout, describe_unpaired, find_layout, with_labels
from medseg.data.metadata import with_metadata
from medseg.data.own_split import divide, matching, with_table, with_tables_beside
from medseg.data.painted import known_layout
from medseg.errors import BadDataset, UsageError, nearest, some
from medseg.io import file_ending
from medseg.io.endings import IMAGE_ENDINGS
from medseg.io.names import plain_name, plain_names, same_name

__all__ = ["Case", "SegmentationDataset", "keep_apart", "open_dataset"]

logger = logging.getLogger(__name__)


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
        color: what pictures are brought to: "keep", "rgb" or "grey".
        split: ids under "train" and "val", where the dataset itself says which of its training cases validate.
        list_file: the table that the cases come from; other files of their folders are left out on purpose.
        unlabelled: ids of images without a label, which are left out.
        skips_unlabelled: the user chose so; else training refuses them.
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
    color: str = "keep"
    split: dict[str, list[str]] | None = None
    list_file: Path | None = None
    unlabelled: tuple[str, ...] = ()
    skips_unlabelled: bool = False
    landmarks: LandmarkLayout | None = None

    @property
    def validation(self) -> tuple[Case, ...]:
        """The training cases that validate, where the dataset itself says so."""
        validating = set((self.split or {}).get("val", ()))
        return tuple(case for case in self.training if case.id in validating)

    @property
    def label_facts(self) -> dict[str, Any]:
        """What a target takes from a dataset, see `medseg.targets.base.configure_target`."""
        return {
            "labels": self.labels,
            "ignore_label": self.ignore_label,
            "regions": self.regions,
            "class_order": self.regions_class_order,
            **(self.landmarks.to_dict() if self.landmarks else {}),
        }

    def case(self, case_id: str) -> Case:
        """The case of that id. Raises UsageError with the nearest known id."""
        known = {case.id: case for case in (*self.test, *self.training)}
        if case_id in known:
            return known[case_id]
        raise UsageError(f"dataset {self.name} has no case '{case_id}': {nearest(case_id, list(known)[:50])}")


def open_dataset(
    path: str | Path,
    *,
    strict: bool = True,
    color: str = "keep",
    instances: bool = False,
    mask_threshold: float | None = None,
    unlabelled: str = "refuse",
) -> SegmentationDataset:
    """Open a dataset folder, the dataset.json in it, or a list of cases in a table.

    Known are nnU-Net v2 raw (``imagesTr/CASE_0000.nii.gz``, or ``CASE.nii.gz`` for a single channel), the Medical
    Segmentation Decathlon (a ``training`` list), folders of images and masks (see `medseg.data.layouts`) and tables
    (see `medseg.data.case_list`). Beside folders and tables a small dataset.json may say what the masks' values or
    colours mean (see `medseg.data.label_codes`); without it the values are found by reading all masks.

    Args:
        path: folder, dataset.json, or table (.csv, .tsv).
        strict: refuse a dataset of which a training file is missing; ``medseg check`` opens it to list them all.
        color: what pictures are brought to, where grey and colour are mixed: "keep", "rgb" or "grey".
        instances: the masks number objects; all of them are one class.
        mask_threshold: from this value on a pixel of a mask is of the one class, e.g. 128 for masks saved as JPEG.
        unlabelled: "refuse" images without mask in folders of images and masks, or "skip" them.

    Raises:
        BadDataset: a folder of no known form, a dataset.json that lacks what is needed or names files outside the
            folder, or missing files; the nearest name is given.
        UnreadableFile: a dataset.json that is not JSON.
        UsageError: an unknown `color` or `unlabelled`; `mask_threshold` as for
            `medseg.data.label_codes.chosen_threshold`, or for a dataset whose dataset.json states its labels.
    """
    checked_color(color)
    if unlabelled not in ("refuse", "skip"):
        raise UsageError(f"unlabelled is '{unlabelled}': {nearest(str(unlabelled), ('refuse', 'skip'))}")
    threshold = chosen_threshold(instances, mask_threshold)
    root = Path(path).expanduser()
    listed = root if root.suffix.lower() in LIST_ENDINGS and root.is_file() else None
    root = root.parent if listed or root.name == "dataset.json" else root
    if not root.is_dir():
        raise BadDataset("there is no such folder", path=root, fix="check the path given as data=")
    given = read_description(root)
    decathlon = listed is None and given.get("training") is not None
    plain = not decathlon and (listed is not None or not _is_nnunet(root, given))
    if threshold is not None and not plain:
        fix = "remove instances or mask_threshold: they are for folders of images and masks, and lists"
        raise UsageError("the labels are what dataset.json says", path=root, fix=fix)
    description = describe(given, root)
    if decathlon:
        dataset = _open_decathlon(root, description)
    elif plain:
        dataset = _open_plain(root, description, listed, color, threshold, strict)
    else:
        dataset = _open_nnunet(root, description)
    dataset = replace(_with_landmarks(dataset), skips_unlabelled=unlabelled == "skip")
    _check(dataset, strict)
    return dataset


def _is_nnunet(root: Path, description: Mapping[str, Any]) -> bool:
    """A dataset.json that describes imagesTr, or that describes nothing else that is there."""
    if not (root / "dataset.json").exists():
        return False
    explicit = description.get("dataset") is not None or (root / "imagesTr").is_dir()
    return explicit or (find_layout(root) is None and not find_landmarks(root).files)


def _open_nnunet(root: Path, description: DatasetDescription) -> SegmentationDataset:
    file, table = root / "dataset.json", parse_labels(description.label_fields, root / "dataset.json")
    channels = _channel_names(description.channel_names or description.modality, file)
    if description.dataset is not None:
        training = [_listed_case(root, entry, file, name) for name, entry in sorted(description.dataset.items())]
        test: list[Case] = []
    else:
        training, test = _cases(root, ("imagesTr", "labelsTr"), len(channels), description.file_ending)
    _tell_left_out(root, training)
    training, test = with_metadata(root, training, test)
    return _dataset(root, description, channels, table, training, test)


def _tell_left_out(root: Path, training: Sequence[Case]) -> None:
    left_out = [case.id for case in training if case.label is None]
    if left_out:
        logger.warning("%s: images without a label are left out: %s", root, some(left_out))


def _open_decathlon(root: Path, description: DatasetDescription) -> SegmentationDataset:
    file, table = root / "dataset.json", parse_labels(description.label_fields, root / "dataset.json")
    channels = _channel_names(description.modality or description.channel_names, file)
    training = [_listed_case(root, entry, file) for entry in description.training or []]
    test = [_listed_case(root, entry, file) for entry in description.test or []]
    _tell_left_out(root, training)
    training, test = with_metadata(root, training, test)
    return _dataset(root, description, channels, table, training, test)


def _open_plain(
    root: Path, description: DatasetDescription, listed: Path | None, color: str, threshold: float | None, strict: bool
) -> SegmentationDataset:
    """Folders or a list: what no description says, channels and classes, is found in the files."""
    from medseg.data.scan import scan_channels, scan_labels

    layout = _layout(root, listed, strict)
    table, coding = parse_masks(description, root / "dataset.json", threshold=threshold)
    if layout.instances and coding is None and table is None:
        problem = "the folder 'instances' numbers objects, and no choice says what is to be learnt"
        one = "every value above 0 becomes one class, foreground"
        fix = f"set data.instances=true (medseg evaluate: instances=true): {one}"
        raise BadDataset(problem, path=root, fix=fix)
    cases = [replace(case, coding=coding) for case in layout.cases]
    labelled = [case for case in cases if case.label]
    if not labelled:
        fix = "fill the column of masks" if listed else "name images and masks alike"
        raise BadDataset("no image has a label file of its name", path=listed or root, fix=fix)
    if strict:
        _refuse_missing(labelled)
    if table is None and layout.labels:
        table = LabelTable(dict(layout.labels))
    if table is None:
        logger.info("%s states no classes: reading every label map to find them", listed or root)
        table = LabelTable(scan_labels(labelled, strict=strict))
    color = (description.color or color) if color == "keep" else color
    if description.channel_names is not None:
        channels = _channel_names(description.channel_names, root / "dataset.json")
    else:
        channels = CHANNELS[color] if color in CHANNELS else scan_channels(labelled[0])
    dataset = _dataset(root, description, channels, table, cases, [], listed)
    training, test, split = divide(cases, layout.sides)
    return replace(
        dataset,
        training=tuple(training),
        test=tuple(test),
        color=color,
        split=split,
        list_file=listed,
        unlabelled=tuple(case.id for case in cases if case.label is None and case not in test),
    )


def _layout(root: Path, listed: Path | None, strict: bool) -> Layout:
    layout = read_list(listed) if listed else known_layout(root, strict=strict)
    if layout is not None:
        return with_tables_beside(layout, listed) if listed else with_table(layout, root)
    inner = next((sub.parent for sub in sorted(root.glob("*/dataset.json"))), None)
    problem, advice = describe_unpaired(root)
    raise BadDataset(f"there is no dataset.json, and {problem}", path=root, fix=f"give {inner}" if inner else advice)


def _dataset(
    root: Path,
    description: DatasetDescription,
    channels: tuple[str, ...],
    table: LabelTable,
    training: Sequence[Case],
    test: Sequence[Case],
    listed: Path | None = None,
) -> SegmentationDataset:
    if not training:
        raise BadDataset("there is no training image", path=root, fix="put images into imagesTr, labels into labelsTr")
    ending = file_ending(training[0].images[0])
    return SegmentationDataset(
        name=_name(description, listed or root),
        root=root,
        channel_names=channels,
        labels=table.labels,
        ignore_label=table.ignore_label,
        regions=table.regions,
        training=tuple(case for case in training if case.label),
        test=tuple(test),
        spatial_dims=2 if ending in IMAGE_ENDINGS else 3,
        file_ending=ending,
        synthetic=bool(description.synthetic),
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


def _cases(root: Path, folders: tuple[str, str], channels: int, ending: str | None) -> tuple[list[Case], list[Case]]:
    """Cases of imagesTr with labelsTr, and of imagesTs with labelsTs."""
    files = image_files(root / folders[0])
    wanted = [file for file in files if not ending or file.name.lower().endswith(ending.lower())]
    if files and not wanted:
        found = ", ".join(sorted({file_ending(file) for file in files}))
        problem = f"file_ending is '{ending}', but {folders[0]} holds {found}"
        raise BadDataset(problem, path=root / "dataset.json", fix="correct file_ending")
    labels, test_labels = (label_files(root / folder, ending) for folder in (folders[1], "labelsTs"))
    grouped = group_images(wanted, labels)
    suffixed = any(set(found) != {0} or f"{case}_0000" == stem(found[0]) for case, found in grouped.items())
    test = group_images(of_ending(image_files(root / "imagesTs"), ending), test_labels, suffixed=suffixed)
    return with_labels(grouped, labels, channels), with_labels(test, test_labels, channels)


def _listed_case(root: Path, entry: ListedCase, file: Path, name: str | None = None) -> Case:
    paths = tuple(inside(root, path, file) for path in entry.paths)
    label = inside(root, entry.label, file) if entry.label else None
    return Case(stem(paths[0]) if name is None else same_name(name), paths, label)


def _name(description: DatasetDescription, path: Path) -> str:
    """As dataset.json says, else that of the folder or the list, which must name a folder of the cache."""
    found = description.name or (path.stem if path.is_file() else path.resolve().name)
    fix = 'give a short "name" in dataset.json, or rename the folder'
    said_by = path / "dataset.json" if description.name else path
    return plain_name(same_name(found), "the dataset's name", path=said_by, fix=fix)


def _channel_names(given: Mapping[str, str] | None, file: Path) -> tuple[str, ...]:
    numbers = {int(key) for key in given or {} if key.isascii() and key.isdigit()}
    if not given or len(numbers) < len(given):
        raise BadDataset(f"'channel_names' is {given!r}", path=file, fix='give e.g. "channel_names": {"0": "CT"}')
    return tuple(given[key] for key in sorted(given, key=int))


def _check(dataset: SegmentationDataset, strict: bool) -> None:
    plain_names((case.id for case in (*dataset.training, *dataset.test)), "case", path=dataset.root)
    ids = [case.id for case in (*dataset.training, *(dataset.test if dataset.list_file or dataset.split else ()))]
    if len(set(ids)) < len(ids):
        twice = next(case for case in ids if ids.count(case) > 1)
        raise BadDataset(f"two training cases are called '{twice}'", path=dataset.root, fix="name the files apart")
    if not strict:
        return
    if not dataset.training:
        raise BadDataset("no training image has a label file", path=dataset.root, fix="name images and labels alike")
    if dataset.unlabelled and not dataset.skips_unlabelled:
        problem = f"{len(dataset.unlabelled)} image(s) have no mask: {some(dataset.unlabelled)}"
        raise BadDataset(problem, path=dataset.root, fix="add the masks, or set data.unlabelled=skip")
    _refuse_missing(dataset.training)


def _refuse_missing(cases: Sequence[Case]) -> None:
    for case in cases:
        for path in (*case.images, *filter(None, [case.label])):
            if not path.is_file():
                taken = {file for other in cases for file in (*other.images, other.label) if file is not None}
                fix = "add or rename it (medseg check lists all faults)"
                raise BadDataset(describe_missing(path, taken), case=case.id, path=path, fix=fix)


def keep_apart(dataset: SegmentationDataset, pattern: str) -> SegmentationDataset:
    """The dataset with the cases whose id matches a shell pattern as its test cases, e.g. those of another hospital.

    Raises:
        UsageError: no case matches.
        BadDataset: all of them do.
    """
    cases = {case.id: case for case in (*dataset.training, *dataset.test)}
    apart = {case.id for case in matching(cases.values(), pattern)}
    training = tuple(case for case in dataset.training if case.id not in apart)
    if not training:
        raise BadDataset(f"every training case matches '{pattern}'", path=dataset.root, fix="give a narrower pattern")
    split = {side: [name for name in ids if name not in apart] for side, ids in (dataset.split or {}).items()}
    test = tuple(case for name, case in sorted(cases.items()) if name in apart)
    return replace(dataset, training=training, test=test, split=split if split.get("val") else None)
