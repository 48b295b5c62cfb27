"""What can be predicted: files, folders, datasets, tables of cases, DICOM folders, volumes and arrays."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Union

import numpy as np
from nibabel.spatialimages import SpatialImage

from medseg.data.case_files import channel_paths, group_images, image_files, label_files, stem
from medseg.data.case_list import LIST_ENDINGS, read_list
from medseg.data.dataset import Case, open_dataset
from medseg.data.layouts import Layout
from medseg.data.metadata import IMAGE_COLUMN, LABEL_COLUMNS, case_column, read_rows
from medseg.data.own_split import with_table
from medseg.data.painted import known_layout
from medseg.errors import BadDataset, BadGeometry, BadVoxels, MedsegError, UnreadableFile, UsageError
from medseg.io import (
    KNOWN_ENDINGS,
    Geometry,
    Volume,
    finite_voxels,
    holds_dicom,
    read_channels,
    read_geometry,
    read_labels,
    to_canonical,
    volume_of,
)
from medseg.io.endings import IMAGE_ENDINGS
from medseg.io.names import plain_name, plain_names, same_name

if TYPE_CHECKING:
    import SimpleITK

Mask = str | Path | np.ndarray
Source = Union[str, Path, Sequence[str | Path], Case, Volume, np.ndarray, SpatialImage, "SimpleITK.Image"]
TAKEN = "a path, paths of channels, a Case, a Volume, a numpy array with spacing=, an image of nibabel or SimpleITK"
TAKEN_FIX = "give tensors as tensor.numpy(), with spacing= in mm"
SHARD = re.compile(r"(\d+)/(\d+)")


def find_cases(source: str | Path, channels: int) -> list[Case]:
    """The cases that a path names.

    * an image file: one case;
    * a table (.csv, .tsv) with the columns ``case`` and ``image``, or ``image_0000``, ``image_0001`` and so on for the
      channels; paths are relative to the table;
    * a dataset (a folder with a dataset.json, with images and masks or landmarks, or a list): its test cases, else all;
    * a folder of DICOM slices: one case, named like the folder;
    * a folder of image files: ``CASE_0000``, ``CASE_0001`` ... are the channels of CASE, other names are cases of one
      file each;
    * a folder of folders of DICOM slices, at any depth: a case each, named by its folders, joined with ``_``.

    Args:
        source: path.
        channels: that the model expects.

    Raises:
        BadDataset: nothing there that can be read.
        UnreadableFile: a folder that cannot be listed.
        UsageError: not one case with as many files as channels.
    """
    source = Path(source).expanduser()
    try:
        cases = _find(source, channels)
    except OSError as error:
        fix = "check the path and its permissions"
        raise UnreadableFile(
            f"cannot be read: {error.strerror or error}", path=error.filename or source, fix=fix
        ) from None
    if not cases:
        fix = f"give DICOM slices or files that end in one of {', '.join(KNOWN_ENDINGS)}"
        raise BadDataset("no image found", path=source, fix=fix)
    plain_names((case.id for case in cases), "case", path=source)
    if not any(len(case.images) in (1, channels) for case in cases):  # a few such cases are refused one by one
        found, case = len(cases[0].images), cases[0].id
        problem = f"{found} channel files (the model expects {channels}, named {case}_0000 and so on)"
        raise UsageError(problem, case=case, path=source)
    return cases


def _find(source: Path, channels: int) -> list[Case]:
    if not source.exists():
        raise BadDataset("the input does not exist", path=source, fix="give a file, a folder, a dataset or a .csv")
    if source.is_file() and source.suffix.lower() in LIST_ENDINGS and _has_labels(source):
        return _test_or_all(read_list(source))
    if source.is_file() and source.suffix.lower() in LIST_ENDINGS:
        return _table(source)
    if source.is_dir() and not (source / "imagesTr").is_dir() and (layout := known_layout(source, strict=False)):
        return _test_or_all(with_table(layout, source))
    if (source / "dataset.json").exists():
        dataset = open_dataset(source)
        return list(dataset.test or dataset.training)
    if source.is_file():
        return _grouped([source], channels) if source.name.lower().endswith(KNOWN_ENDINGS) else []
    return _folder(source, channels)


def _has_labels(table: Path) -> bool:
    return any(column in row for row in read_rows(table)[:1] for column in LABEL_COLUMNS)


def _test_or_all(layout: Layout) -> list[Case]:
    test = [case for case in layout.cases if layout.sides.get(case.id) == "test"]
    return test or list(layout.cases)


def take_shard(cases: Sequence[Case], shard: str | None) -> list[Case]:
    """Every n-th case from the i-th for ``"i/n"``, counted from 1; all of them for None.

    Raises:
        UsageError: not of that form, or i is not within 1 to n.
    """
    if shard is None:
        return list(cases)
    match = SHARD.fullmatch(str(shard).strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"shard is '{shard}' (expected i/n, from 1/n to n/n)", fix="write e.g. shard=1/8 to shard=8/8")
    return list(cases)[int(match[1]) - 1 :: int(match[2])]


def resolve_source(source: Source, spacing: Sequence[float] | None, case: str | None = None) -> Volume | list[Path]:
    """A volume, or the files of one case; no file is opened.

    Raises:
        UsageError: an array without ``spacing``, ``spacing`` for something else, or what is no source at all.
        BadVoxels, BadGeometry: an array or image that is not one of real numbers, (*S) or (C, *S), or on no grid.
    """
    if isinstance(source, np.ndarray):
        return _volume(source, spacing, case)
    if spacing is not None:
        raise UsageError("spacing= is for arrays only; files and volumes have their own", case=case)
    if isinstance(source, Volume):
        return source
    if isinstance(source, Case):
        return list(source.images)
    if isinstance(source, str | Path):
        return [Path(source)]
    if isinstance(source, list | tuple) and source and all(isinstance(path, str | Path) for path in source):
        return [Path(path) for path in source]
    with in_case(case):
        volume = volume_of(source)
    if volume is None:
        raise UsageError(f"a {type(source).__name__} cannot be predicted (taken are {TAKEN})", case=case, fix=TAKEN_FIX)
    return volume


def source_geometry(source: Volume | list[Path], case: str | None) -> Geometry:
    """The grid, from the header of the first file."""
    return source.geometry if isinstance(source, Volume) else read_geometry(source[0], case=case)


def read_source(source: Volume | list[Path], nan: Literal["refuse", "zero"], case: str | None) -> Volume:
    """Voxels as (C, *S) float32; those of a volume in memory are left as they are.

    Raises:
        InputRefused: as `medseg.io.read_channels`; also for NaN voxels of a volume.
    """
    if not isinstance(source, Volume):
        return read_channels(source, nan=nan, case=case)
    with in_case(case):
        return Volume(finite_voxels(np.asarray(source.array, np.float32), nan, case or "volume"), source.geometry)


@contextmanager
def in_case(case: str | None) -> Iterator[None]:
    """Put the case into errors of what knows none."""
    try:
        yield
    except MedsegError as error:
        error.case = error.case or case
        error.args = (str(error),)
        raise


def read_mask(mask: Mask, geometry: Geometry, case: str | None) -> np.ndarray:
    """Where a mask is not 0, (*S) bool in canonical orientation.

    Args:
        mask: file, or folder with a file of each case's name, or array (*S) in the image's axis order.
        geometry: of the image.
        case: name.

    Raises:
        InputRefused: there is no file for the case, it cannot be read, or is on another grid than the image.
    """
    if not isinstance(mask, np.ndarray | str | Path):
        raise UsageError(f"mask is a {type(mask).__name__} (expected a path or a numpy array)", case=case)
    if isinstance(mask, np.ndarray):
        array, difference = mask, None if mask.shape == geometry.shape else f"its shape is {mask.shape}"
    else:
        path = _mask_file(Path(mask).expanduser(), case)
        volume = read_labels(path, case=case)
        array, difference = volume.array[0], geometry.difference(volume.geometry)
    if difference is not None:
        raise BadGeometry(f"the mask is on another grid than the image: {difference}", case=case)
    return np.ascontiguousarray(to_canonical((array != 0)[None], geometry)[0])


def _mask_file(mask: Path, case: str | None) -> Path:
    if not mask.is_dir():
        return mask
    found = label_files(mask).get(case or "")
    if found is None:
        raise UnreadableFile("the folder of masks has none for this case", case=case, path=mask, fix="name it like it")
    return found


def _volume(array: np.ndarray, spacing: Sequence[float] | None, case: str | None) -> Volume:
    if spacing is None:
        raise UsageError("an array needs the size of its voxels", case=case, fix="give spacing=(x, y, z) in mm")
    axes = len(spacing)
    if axes not in (2, 3) or array.ndim - axes not in (0, 1) or array.size == 0 or array.dtype.kind not in "biuf":
        found = f"an array {array.shape} of {array.dtype} with {axes} numbers as spacing"
        raise BadVoxels(f"{found} (expected real numbers, (*S) or (C, *S), and a spacing per axis of S)", case=case)
    if not all(np.isfinite(mm) and mm > 0 for mm in spacing):
        raise BadGeometry(f"spacing is {tuple(spacing)} mm (expected numbers above 0)", case=case)
    channels = array if array.ndim > axes else array[None]
    return Volume(channels, Geometry(channels.shape[1:], np.diag([*spacing, *[1.0] * (4 - axes)])))


def _folder(root: Path, channels: int) -> list[Case]:
    files = image_files(root)
    if not files:
        return _dicom_folders(root)
    if holds_dicom(root):
        problem = f"holds both image files, as {files[0].name}, and DICOM slices"
        raise UsageError(problem, path=root, fix="separate them, or list what is meant in a .csv")
    return _grouped(files, channels)


def _grouped(files: Sequence[Path], channels: int) -> list[Case]:
    """Cases of one file, or of ``CASE_0000``, ``CASE_0001``, ...; pictures that are only numbered are cases each."""
    grouped = group_images(files, ())
    numbered = any(min(found) > 0 or len(found) > channels for found in grouped.values())
    if numbered and all(file.name.lower().endswith(IMAGE_ENDINGS) for file in files):
        grouped = group_images(files, (), suffixed=False)
    return [case for name, found in grouped.items() for case in _cases_of(name, found, channels)]


def _cases_of(name: str, found: Mapping[int, Path], channels: int) -> list[Case]:
    """The files of one name: channels of one case, or numbered cases that keep their numbers.

    A channel before the last that is not there gets the path that it should have: reading the case names it.
    """
    if list(found) == [0]:
        return [Case(name, (found[0],))]
    if channels == 1 or len(found) == 1:
        return [Case(stem(file), (file,)) for _, file in sorted(found.items())]
    paths = channel_paths(found, name, channels)
    gap = len(found) <= max(found)
    return [Case(name, paths[:channels] if gap else tuple(found[number] for number in sorted(found)))]


def _dicom_folders(root: Path) -> list[Case]:
    if holds_dicom(root):
        return [Case(id=root.resolve().name, images=(root,))]
    closed: list[Path] = []  # folders that cannot be listed are cases, too: each is refused by its name

    def note(error: OSError) -> None:
        closed.append(Path(error.filename))

    below = [Path(folder) for folder, _, files in os.walk(root, onerror=note) if files and holds_dicom(Path(folder))]
    below = sorted([*below, *(folder for folder in closed if folder != root)])
    return _distinct([Case("_".join(path.relative_to(root).parts), (path,)) for path in below], root)


def _table(path: Path) -> list[Case]:
    """Cases of a CSV file."""
    rows = read_rows(path)
    known = list(rows[0]) if rows else []
    columns, name = [column for column in known if IMAGE_COLUMN.fullmatch(column)], case_column(known)
    if rows and (name is None or not columns):
        raise BadDataset(f"its columns are {', '.join(known)}", path=path, fix="give case and image, or image_0000 ...")
    return _distinct([_row(row, str(name), sorted(columns), path, n) for n, row in enumerate(rows, 1)], path)


def _row(row: dict[str, str], case: str, columns: Sequence[str], path: Path, number: int) -> Case:
    name, files = row[case], [row[column] for column in columns]
    if not name or not all(files):
        raise BadDataset(f"row {number} has an empty cell (expected {', '.join([case, *columns])})", path=path)
    name = plain_name(same_name(name), f"row {number}: case", path=path)
    return Case(name, tuple(path.parent / Path(file).expanduser() for file in files))


def _distinct(cases: list[Case], path: Path) -> list[Case]:
    twice = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise BadDataset(f"two cases are called '{twice[0]}'", path=path, fix="name them apart")
    return cases
