"""Where a command may write: never onto what it reads, into a dataset or a model, or over what medseg did not write."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from medseg.data.case_files import image_files
from medseg.data.layouts import IMAGES, LABELS
from medseg.errors import ResourceError, UsageError
from medseg.io.ledger import LEDGER, first_foreign, keep_ledger
from medseg.io.model_folder import DESCRIPTION

OF_DATASETS = (*IMAGES, *LABELS, "imagests", "labelsts")  # folders, in lower case
ELSEWHERE = "choose another output folder"

Identity = tuple[int, int]


def check_outputs(
    folder: str | Path,
    files: Iterable[str | Path],
    inputs: Iterable[str | Path | None],
    *,
    ours_only: bool = True,
    beside: str | Path | None = None,
) -> Path:
    """Refuse an output that would cost the user something; nothing is written here.

    Files and folders are compared by what they are, so links, other spellings and other letter case change nothing.

    Args:
        folder: as the user gave it.
        files: what will be written, relative to the folder.
        inputs: files and folders that must not be written to; None among them are passed over.
        ours_only: whether files that medseg did not write are refused too.
        beside: a folder that is no dataset's whatever it is called, e.g. of the predictions that a report is about.

    Returns:
        The folder, ``~`` and ``..`` resolved.

    Raises:
        UsageError: the folder or a file is an input; the folder lies in the images or labels of a dataset, or holds a
            model; a file is there though medseg did not write it, or it was changed since.
        ResourceError: the folder is a file, lies below one, or cannot be written.
    """
    if not str(folder).strip():
        raise UsageError("the output folder has no name", fix="give output=FOLDER")
    found, files = plain_path(folder), list(files)
    paths, read = [found / file for file in files], identities(inputs)
    if taken := next((path for path in (found, *paths) if identity(path) in read), None):
        problem = "is an input or the folder of one, which is never written to"
        raise UsageError(problem, path=taken, fix=ELSEWHERE)
    _refuse_homes(found, DESCRIPTION in map(str, files), None if beside is None else identity(plain_path(beside)))
    if ours_only and (foreign := first_foreign(paths)):
        problem = "is there already, and medseg did not write it or it was changed since"
        raise UsageError(problem, path=foreign, fix=f"{ELSEWHERE}, or move that file away")
    return found


def refuse_sources(sources: Iterable[Path], paths: Iterable[str | Path]) -> None:
    """Refuse to write onto a file that the result was made from, or that lies in a folder that it was made from.

    Raises:
        UsageError: one of the paths is one.
    """
    made_from = identities(sources)
    for path in map(Path, paths):
        if identity(path) in made_from or (path.is_file() and identity(real_path(path).parent) in made_from):
            raise UsageError("is what the segmentation was made from", path=path, fix="save it under another name")


def keep_account(folder: Path, files: Iterable[str | Path]) -> None:
    """Let the folders of these files keep account of what is written into them from now on."""
    for file in files:
        keep_ledger((folder / file).parent)


def plain_path(path: str | Path) -> Path:
    """A path with ``~`` and ``..`` resolved: ``a/../b`` is b, also where there is no a yet."""
    found = Path(path).expanduser()
    return real_path(found) if ".." in found.parts else found


def real_path(path: Path) -> Path:
    """The path without links; one that leads in a circle, which `Path.resolve` takes for a fault, stays as it is."""
    return Path(os.path.realpath(path))


def same_names(folder: Path) -> bool:
    """Whether the file system of a folder takes names that differ in the case of letters for one."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    return there.name.swapcase() != there.name and identity(there.with_name(there.name.swapcase())) == identity(there)


def identity(path: Path) -> Identity | None:
    """What a path leads to, whatever it is called; None where nothing is."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def identities(paths: Iterable[str | Path | None]) -> set[Identity]:
    """`identity` of all that is there."""
    return {found for path in paths if path is not None and (found := identity(plain_path(path)))}


def _refuse_homes(folder: Path, model: bool, beside: Identity | None) -> None:
    """Refuse what is no folder to write into, the home of a dataset's files, and (but for a `model`) of a model."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES if there.is_dir() else errno.ENOTDIR)
        raise ResourceError(f"cannot be written: {reason}", path=there, fix=ELSEWHERE)
    if not model and os.path.lexists(folder / DESCRIPTION):
        raise UsageError("holds a model, beside which nothing else is written", path=folder, fix=ELSEWHERE)
    resolved = real_path(folder)
    for path in (resolved, resolved.parent):
        if beside is not None and identity(path) == beside:
            return
        if path.name.lower() in OF_DATASETS and not (path / LEDGER).is_file() and _holds_images(path):
            raise UsageError(f"lies in '{path.name}', the images or labels of a dataset", path=folder, fix=ELSEWHERE)


def _holds_images(folder: Path) -> bool:
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return any(image_files(path) for path in (folder, *inside))
