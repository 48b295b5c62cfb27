"""Which prediction belongs to which reference: the case list always comes from the references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.data.dataset import SegmentationDataset, open_dataset
from medseg.data.label_names import LabelTable, parse_labels
from medseg.errors import BadDataset, InputRefused
from medseg.io import KNOWN_ENDINGS, file_ending, read_json

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
    """

    id: str
    reference: Path
    prediction: Path | None
    image: Path | None = None
    probabilities: Path | None = None


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


def pair_folders(predictions: str | Path, references: str | Path) -> FolderPair:
    """Pair predictions with references by file name without ending.

    Args:
        predictions: folder of label maps.
        references: folder of label maps, or a dataset folder, whose test or training labels are then taken:
            those that more of the predictions belong to.

    Raises:
        BadDataset: a folder is missing or holds no label maps, two files are of one case, or no prediction at all
            has a reference.
    """
    found, references = label_files(predictions), Path(references)
    root = _dataset_root(references)
    wanted = _dataset_labels(references, found) if root == references else label_files(references)
    if not wanted.keys() & found.keys():
        problem = f"none of its {len(found)} files is named like one of the {len(wanted)} references"
        example = f"references are named like {next(iter(wanted.values())).name}"
        raise BadDataset(f"{problem} ({example})", path=predictions, fix="check both paths, or rename the predictions")
    images = _images(root) if root else {}
    shares = {path.name[: -len(file_ending(path))]: path for path in Path(predictions).glob(f"*{PROBABILITIES}.*")}
    cases = tuple(
        CaseFiles(id, wanted[id], found.get(id), images.get(id), shares.get(id + PROBABILITIES))
        for id in sorted(wanted)
    )
    extra = tuple(found[id] for id in sorted(found.keys() - wanted.keys()))
    return FolderPair(cases, extra, _label_table(root) if root else None)


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


def _dataset_root(references: Path) -> Path | None:
    """The folder of the dataset.json: the one given, or the one above a labelsTr or labelsTs."""
    return next((root for root in (references, references.parent) if (root / "dataset.json").is_file()), None)


def _label_table(root: Path) -> LabelTable:
    file = root / "dataset.json"
    description = read_json(file)
    if not isinstance(description, dict):
        raise BadDataset("expected an object with 'labels'", path=file)
    return parse_labels(description, file)


def _dataset_labels(root: Path, found: Mapping[str, Path]) -> dict[str, Path]:
    dataset: SegmentationDataset = open_dataset(root, strict=False)
    parts = [
        {case.id: case.label for case in part if case.label is not None} for part in (dataset.test, dataset.training)
    ]
    chosen = max(parts, key=lambda part: (len(part.keys() & found.keys()), len(part) > 0))
    if not chosen:
        raise BadDataset("the dataset has no labels", path=root, fix="give references= a folder of label maps")
    return chosen


def _images(root: Path) -> dict[str, Path]:
    """First image of each case, for pictures only: a folder of references need not be a whole dataset."""
    try:
        dataset = open_dataset(root, strict=False)
    except InputRefused:
        return {}
    return {case.id: case.images[0] for case in (*dataset.training, *dataset.test) if case.images}
