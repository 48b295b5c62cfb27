"""Which files belong to which case, by their names; no file is opened."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path

from medseg.errors import BadDataset
from medseg.io import KNOWN_ENDINGS, file_ending

CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
LABEL_SUFFIX = re.compile(r"[_-](segmentation|seg|mask|labels?)$", re.IGNORECASE)


def stem(path: Path) -> str:
    """The file name without its known ending: ``a.b.nii.gz`` -> ``a.b``."""
    return path.name[: -len(file_ending(path))]


def bare(name: str) -> str:
    """A file's name without folders and known ending, e.g. of a line that lists it: ``images/a.png`` -> ``a``."""
    path = Path(name)
    return stem(path) if path.name.lower().endswith(KNOWN_ENDINGS) else path.name


def image_files(folder: Path) -> list[Path]:
    """Files of a known kind, sorted; hidden ones (as the ``._x`` of macOS archives) are left out."""
    if not folder.is_dir():
        return []
    known = (file for file in folder.iterdir() if file.name.lower().endswith(KNOWN_ENDINGS))
    return sorted(file for file in known if not file.name.startswith("."))


def label_files(folder: Path) -> dict[str, Path]:
    """Case -> label file. ``x.png``, ``x_mask.png`` and ``x_segmentation.png`` are labels of ``x``."""
    files = image_files(folder)
    return {LABEL_SUFFIX.sub("", stem(file)): file for file in files} | {stem(file): file for file in files}


def group_images(
    files: Collection[Path], labelled: Collection[str], *, suffixed: bool = True
) -> dict[str, dict[int, Path]]:
    """Case -> channel -> file: ``CASE_0001.nii.gz`` is channel 1 of CASE, ``CASE.nii.gz`` is CASE itself.

    Args:
        files: images.
        labelled: cases that have labels; they tell whether ``scan_0001`` is channel 1 of ``scan`` or a case.
        suffixed: how to read such a name when no label tells.

    Raises:
        BadDataset: two files are the same channel of one case, as ``a.png`` and ``a.jpg``.
    """
    grouped: dict[str, dict[int, Path]] = {}
    for file in files:
        name = stem(file)
        match = CHANNEL.fullmatch(name)
        if match and (match["case"] in labelled or (suffixed and name not in labelled)):
            case, channel = match["case"], int(match["channel"])
        else:
            case, channel = name, 0
        first = grouped.setdefault(case, {}).setdefault(channel, file)
        if first != file:
            raise BadDataset(f"{first.name} and {file.name} are one image by their names", path=file, fix="remove one")
    return grouped


def channel_paths(channels: Mapping[int, Path], case: str, count: int) -> tuple[Path, ...]:
    """One path per channel in order; a channel that is not there gets the path that it should have."""
    first = next(iter(channels.values()))
    expected = {n: first.with_name(f"{case}_{n:04d}{file_ending(first)}") for n in range(count)}
    paths = expected | dict(channels)
    return tuple(paths[number] for number in sorted(paths))


def inside(root: Path, relative: object, description: Path) -> Path:
    """A path that a dataset.json names. Raises BadDataset if it is no text or leaves the dataset's folder."""
    if not isinstance(relative, str) or not relative:
        raise BadDataset(f"expected a path, found {relative!r}", path=description)
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise BadDataset(f"'{relative}' lies outside the dataset", path=description, fix="use paths below its folder")
    return path


def describe_missing(path: Path) -> str:
    """Say that a file is missing, with the name in its folder that was probably meant."""
    if not path.parent.is_dir():
        return f"file is missing: there is no folder {path.parent}"
    close = get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=1, cutoff=0.6)
    return "file is missing" + (f"; did you mean '{close[0]}'?" if close else "")
