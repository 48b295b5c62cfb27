"""Which files belong to which case, by their names; no file is opened."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from itertools import count
from pathlib import Path

from medseg.errors import BadDataset
from medseg.io import KNOWN_ENDINGS, file_ending
from medseg.io.names import same_name

CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
LABEL_SUFFIX = re.compile(r"[_-](segmentation|seg|mask|labels?)$", re.IGNORECASE)


def stem(path: Path) -> str:
    """The file name without its known ending, as `same_name` writes it: ``a.b.nii.gz`` -> ``a.b``."""
    return same_name(path.name[: -len(file_ending(path))])


def bare(name: str) -> str:
    """A file's name without folders and known ending, e.g. of a line that lists it: ``images/a.png`` -> ``a``."""
    path = Path(name)
    return stem(path) if path.name.lower().endswith(KNOWN_ENDINGS) else same_name(path.name)


def image_files(folder: Path) -> list[Path]:
    """Files of a known kind, sorted; hidden ones (as the ``._x`` of macOS archives) are left out."""
    if not folder.is_dir():
        return []
    known = (file for file in folder.iterdir() if file.name.lower().endswith(KNOWN_ENDINGS))
    return sorted(file for file in known if not file.name.startswith("."))


def label_files(folder: Path, ending: str | None = None) -> dict[str, Path]:
    """Case -> label file. ``x.png``, ``x_mask.png`` and ``x_segmentation.png`` are labels of ``x``, and of themselves.

    Args:
        folder: of label maps.
        ending: which file is meant where two differ only in their ending, as ``file_ending`` in a dataset.json says.

    Raises:
        BadDataset: two files are the label of one case.
    """
    files = of_ending(image_files(folder), ending)
    return labels_by_case((LABEL_SUFFIX.sub("", stem(file)), file) for file in files) | labels_by_case(
        (stem(file), file) for file in files
    )


def labels_by_case(named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Case -> its label file. Raises BadDataset where a case has two: nothing says which of them is right."""
    found: dict[str, Path] = {}
    for case, file in named:
        first = found.setdefault(case, file)
        if first != file:
            problem = f"{first.name} and {file.name} are both its label"
            fix = "remove one (a dataset.json of nnU-Net may say which by file_ending)"
            raise BadDataset(problem, case=case, path=file, fix=fix)
    return found


def of_ending(files: Collection[Path], ending: str | None) -> list[Path]:
    """The files, without those of another ending beside one of the same name with this ending."""
    wanted = {stem(file) for file in files if ending and file.name.lower().endswith(ending.lower())}
    return [file for file in files if stem(file) not in wanted or file.name.lower().endswith(str(ending).lower())]


def group_images(
    files: Collection[Path], labelled: Collection[str], *, suffixed: bool = True
) -> dict[str, dict[int, Path]]:
    """Case -> channel -> file: ``CASE_0001.nii.gz`` is channel 1 of CASE, ``CASE.nii.gz`` is CASE itself.

    Args:
        files: images.
        labelled: cases that have labels; they tell whether ``scan_0001`` is channel 1 of ``scan`` or a case. Where
            both have labels, it is a case unless it has channels of its own, ``scan_0001_0000``.
        suffixed: how to read such a name when no label tells.

    Raises:
        BadDataset: two files are the same channel of one case, as ``a.png`` and ``a.jpg``.
    """
    grouped: dict[str, dict[int, Path]] = defaultdict(dict)
    with_channels = {match["case"] for file in files if (match := CHANNEL.fullmatch(stem(file)))}
    for file in files:
        name = stem(file)
        match = CHANNEL.fullmatch(name)
        if match and name in labelled:
            is_channel = match["case"] in labelled and name in with_channels
        else:
            is_channel = match is not None and (suffixed or match["case"] in labelled)
        case, channel = (match["case"], int(match["channel"])) if match and is_channel else (name, 0)
        first = grouped[case].setdefault(channel, file)
        if first != file:
            raise BadDataset(f"{first.name} and {file.name} are one image by their names", path=file, fix="remove one")
    return dict(grouped)


def channel_paths(channels: Mapping[int, Path], case: str, wanted: int) -> tuple[Path, ...]:
    """One path per channel in order; the first that is not there gets the path that it should have.

    Args:
        channels: number -> file.
        case: id.
        wanted: number of channels; more may be there.
    """
    missing = next(number for number in count() if number not in channels)
    paths = dict(channels)
    if missing < max(wanted, *(number + 1 for number in channels)):
        first = next(iter(channels.values()))
        paths[missing] = first.with_name(f"{case}_{missing:04d}{file_ending(first)}")
    return tuple(paths[number] for number in sorted(paths))


def inside(root: Path, relative: object, description: Path) -> Path:
    """A path that a file of the dataset names; links in the folder may lead elsewhere, the text may not.

    Raises:
        BadDataset: it is no text, or leaves the dataset's folder.
    """
    if not isinstance(relative, str) or not _can_be_path(relative):
        raise BadDataset(f"expected a path, found {relative!r:.80}", path=description, fix='write e.g. "images/a.png"')
    if "\\" in relative:
        raise BadDataset(f"'{relative}' has a backslash", path=description, fix="write / between folders")
    text = os.path.normpath(relative)
    above = [folder for folder in (root.absolute(), root.resolve()) if Path(text).is_relative_to(folder)]
    if above:
        text = str(Path(text).relative_to(above[0]))
    if Path(text).is_absolute() or text.split("/")[0] == "..":
        raise BadDataset(f"'{relative}' lies outside the dataset", path=description, fix="use paths below its folder")
    spellings = (root / unicodedata.normalize(form, text) for form in ("NFC", "NFD"))  # a disk keeps one of them
    return root / text if (root / text).exists() else next(filter(Path.exists, spellings), root / text)


def _can_be_path(text: str) -> bool:
    """Whether a file system can be asked for it: no NUL, no half characters, no part of over 255 bytes."""
    try:
        return bool(text) and "\0" not in text and max(len(os.fsencode(part)) for part in text.split("/")) <= 255
    except UnicodeEncodeError:
        return False


def describe_missing(path: Path, taken: Collection[Path] = ()) -> str:
    """Say that a file is missing, with the name in its folder that was probably meant.

    Args:
        path: of the file.
        taken: files of other cases, which were not meant.
    """
    if path.is_symlink():
        return "is a link to a file that is not there"
    if not path.parent.is_dir():
        return f"file is missing: there is no folder {path.parent}"
    free = [file.name for file in image_files(path.parent) if file not in taken]
    close = get_close_matches(path.name, free, n=1, cutoff=0.6)
    return "file is missing" + (f"; did you mean '{close[0]}'?" if close else "")
