"""Which prediction belongs to which reference: the case list always comes from the references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.data.case_files import LABEL_SUFFIX
from medseg.data.case_list import LIST_ENDINGS
from medseg.data.dataset import SegmentationDataset, open_dataset
from medseg.data.label_names import LabelTable, parse_labels
from medseg.data.landmark_files import find_landmarks
from medseg.data.layouts import IMAGES, find_layout, subfolder
from medseg.errors import BadDataset, InputRefused
from medseg.io import KNOWN_ENDINGS, LabelCoding, file_ending, read_json

OVERLAY = "overlay.png"  # of a report in the same folder
PROBABILITIES = "_probabilities"
BESIDE = (PROBABILITIES, "_entropy", "_mutual_information")  # what medseg predict writes beside a segmentation


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        id: the reference's file name without its ending.
        reference: label map.
        prediction: label map; None if it is missing.
        image: what the labels were drawn on, for pictures; None if unknown.
        probabilities: of the classes, (K, *S), for calibration; None if unknown.
        coding: how the reference's pixels become label values; None: they are label values.
        landmarks: file of the reference's points; None where they may lie beside the reference.
    """

    id: str
    reference: Path
    prediction: Path | None
    image: Path | None = None
    probabilities: Path | None = None
    coding: LabelCoding | None = None
    landmarks: Path | None = None


@dataclass(frozen=True)
class FolderPair:
    """What two folders hold.

    Attributes:
        cases: one for each reference, sorted by id.
        extra: predictions without a reference.
        table: what the label values mean, where a dataset.json in or above the references says so.
    """

    cases: tuple[CaseFiles, ...]
    extra: tuple[Path, ...]
    table: LabelTable | None


def pair_folders(predictions: str | Path, references: str | Path, threshold: float | None = None) -> FolderPair:
    """Pair predictions with references by file name without ending.

    Args:
        predictions: folder of label maps.
        references: folder of label maps, or a dataset folder or list, whose test, validation or training labels are
            then taken: those that more of the predictions belong to.
        threshold: of the references' values, see `medseg.data.label_codes.chosen_threshold`.

    Raises:
        BadDataset: a folder is missing or holds no label maps, two files are of one case, or no prediction at all
            has a reference.
        UsageError: a threshold for a dataset whose dataset.json states its labels.
    """
    found, references = label_files(predictions), Path(references)
    root = _dataset_root(references)
    dataset = _dataset_of(references, root, threshold)
    whole = references in (root, dataset.list_file if dataset else None)
    wanted = _dataset_labels(dataset, found) if dataset and whole else _by_name(label_files(references), found)
    if not wanted.keys() & found.keys():
        problem = f"none of its {len(found)} files is named like one of the {len(wanted)} references"
        example = f"references are named like {next(iter(wanted.values())).name}"
        raise BadDataset(f"{problem} ({example})", path=predictions, fix="check both paths, or rename the predictions")
    every = (*dataset.training, *dataset.test) if dataset else ()
    images = {case.id: case.images[0] for case in every if case.images}
    points = {case.id: case.landmarks for case in every}
    coding = next((case.coding for case in every if case.coding), LabelCoding(threshold=threshold))
    shares = _probability_files(Path(predictions))
    cases = tuple(
        CaseFiles(id, wanted[id], found.get(id), images.get(id), shares.get(id + PROBABILITIES), coding, points.get(id))
        for id in sorted(wanted)
    )
    extra = tuple(found[id] for id in sorted(found.keys() - wanted.keys()))
    return FolderPair(cases, extra, _table_of(dataset, root))


def label_files(folder: str | Path) -> dict[str, Path]:
    """Files of a known format in a folder, by name without ending.

    Raises:
        BadDataset: no such folder, no file, or two files of one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadDataset("there is no such folder", path=folder, fix="check the path")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == OVERLAY or not path.name.lower().endswith(KNOWN_ENDINGS):
            continue
        name = path.name[: -len(file_ending(path))]
        if name.endswith(BESIDE):
            continue
        if name in files:
            raise BadDataset(f"{files[name].name} and {path.name} are of one case", path=folder, fix="remove one")
        files[name] = path
    if not files:
        raise BadDataset(f"the folder has no label maps ({' '.join(KNOWN_ENDINGS)})", path=folder, fix="check the path")
    return files


def _probability_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.glob(f"*{PROBABILITIES}.*")):
        if path.name.startswith(".") or not path.name.lower().endswith(KNOWN_ENDINGS):
            continue
        name = path.name[: -len(file_ending(path))]
        if name in files:
            raise BadDataset(f"{files[name].name} and {path.name} are of one case", path=folder, fix="remove one")
        files[name] = path
    return files


def _dataset_root(references: Path) -> Path | None:
    """The folder of the dataset: the one given, or the one above its labels whose dataset.json describes them."""
    if (references / "dataset.json").is_file():
        return references
    if references.is_dir() and (find_layout(references) or _has_points(references)):
        return references
    return references.parent if (references.parent / "dataset.json").is_file() else None


def _has_points(root: Path) -> bool:
    """Whether there are landmarks of images; where no masks are, these are painted from them."""
    return subfolder(root, IMAGES) is not None and bool(find_landmarks(root).files)


def _dataset_of(references: Path, root: Path | None, threshold: float | None) -> SegmentationDataset | None:
    """The dataset that the references are; or that they lie in, if it can be opened: it need not be whole then."""
    if references.suffix.lower() in LIST_ENDINGS or root == references:
        # Points that are wrong would be painted as empty masks.
        if root is not None and _has_points(root) and find_layout(root) is None:
            return open_dataset(references, unlabelled="skip")
        return open_dataset(references, strict=False, mask_threshold=threshold)
    try:
        return open_dataset(root, strict=False, mask_threshold=threshold) if root else None
    except InputRefused:
        return None


def _table_of(dataset: SegmentationDataset | None, root: Path | None) -> LabelTable | None:
    if dataset is not None:
        return LabelTable(dataset.labels, dataset.ignore_label, dataset.regions, dataset.regions_class_order)
    if root is None:
        return None
    file = root / "dataset.json"
    description = read_json(file)
    if not isinstance(description, dict):
        raise BadDataset("expected an object with 'labels'", path=file)
    return parse_labels(description, file)


def _dataset_labels(dataset: SegmentationDataset, found: Mapping[str, Path]) -> dict[str, Path]:
    """Labels of the part that most of the predictions belong to; of equal ones the smallest: test, validation, all."""
    parts = [
        {case.id: case.label for case in part if case.label is not None}
        for part in (dataset.test, dataset.validation, dataset.training)
    ]
    chosen = max(parts, key=lambda part: (len(part.keys() & found.keys()), len(part) > 0))
    if not chosen:
        raise BadDataset("the dataset has no labels", path=dataset.root, fix="give references= a folder of label maps")
    return chosen


def _by_name(files: dict[str, Path], found: Mapping[str, Path]) -> dict[str, Path]:
    """By the names as they are, or, if no prediction is called so, without ``_mask`` or ``_segmentation``."""
    if files.keys() & found.keys():
        return files
    return {LABEL_SUFFIX.sub("", name): file for name, file in files.items()}
