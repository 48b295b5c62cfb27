"""Datasets by name: the embedded phantoms, and public ones found on this machine or downloaded from their address."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.data.dataset import SegmentationDataset, keep_apart, open_dataset
from medseg.data.keys import user_cache
from medseg.errors import BadDataset, ResourceError, UsageError, nearest
from medseg.io import download, extract

PHANTOM = "phantom"
PHANTOM_FOLDER = "phantom-v1"  # raise the number when the generator changes: old ones lie in the caches of users


@dataclass(frozen=True)
class CatalogueEntry:
    """A public dataset.

    Attributes:
        name: what a user types as ``data=``.
        title: what it is.
        folders: names under which it lies in a data folder; the first is that inside the archive.
        url: of the archive.
        licence: shown before a download.
        citation: whom to cite.
        size: bytes of the archive; None: as the server says, the digest decides.
        sha256: of the archive.
        md5: of the archive, where its publisher gives no SHA-256. It detects a damaged or exchanged file as long as
            nobody forges one on purpose, which MD5 does not rule out.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    url: str
    licence: str
    citation: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None


CATALOGUE = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            name="hippocampus",
            title="Medical Segmentation Decathlon, Task04: anterior and posterior hippocampus in T1 MR, 260 volumes",
            folders=("Task04_Hippocampus", "Dataset004_Hippocampus"),
            url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
            licence="CC-BY-SA 4.0",
            citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 4128 (2022)",
            md5="9d24dba78a72977dbd1d2e110310f31b",  # as monai.apps.DecathlonDataset publishes it
        ),
    )
}


def list_datasets() -> list[str]:
    """Names that ``data=`` knows."""
    return [PHANTOM, *CATALOGUE]


def resolve_dataset(data: Mapping[str, Any], *, strict: bool = True) -> SegmentationDataset:
    """Open the dataset of a ``data`` config: its ``path`` if it has one, else the catalogue's ``name``.

    Args:
        data: ``name`` and ``path``; ``color``, ``instances``, ``mask_threshold`` and ``unlabelled`` as for
            `open_dataset`; ``test``, a pattern of case ids that are kept apart for testing.
        strict: as for `open_dataset`.

    Raises:
        UsageError: neither, or an unknown name.
        MedsegError: as `open_dataset` and `find_dataset`.
    """
    if not data.get("path") and not data.get("name"):
        raise UsageError("no dataset is given", fix=f"set data=FOLDER or data={' or data='.join(list_datasets())}")
    choices = {
        key: data[key] for key in ("color", "instances", "mask_threshold", "unlabelled") if data.get(key) is not None
    }
    dataset = open_dataset(data.get("path") or find_dataset(data["name"]), strict=strict, **choices)
    return keep_apart(dataset, data["test"]) if data.get("test") else dataset


def find_dataset(name: str) -> Path:
    """The folder of a dataset: found in `data_folders`, else generated or downloaded into `user_cache`.

    Args:
        name: one of `list_datasets`.

    Raises:
        UsageError: unknown name; the nearest is given.
        UnsafeArtefact: the archive is not the published one, or is hostile.
        ResourceError: no connection, or no room; a second call goes on where the first stopped.
    """
    if name == PHANTOM:
        return _phantoms(user_cache() / PHANTOM_FOLDER)
    if name not in CATALOGUE:
        raise UsageError(f"there is no dataset '{name}': {nearest(name, list_datasets())}", fix="or give a folder")
    return _find(CATALOGUE[name]) or _download(CATALOGUE[name])


def data_folders() -> list[Path]:
    """Where datasets are looked for, in order: ``$MEDSEG_DATA``, ``../shared/data`` (beside the working folder, then
    beside a checkout of medseg), the user's cache."""
    given = os.environ.get("MEDSEG_DATA")
    checkout = Path(__file__).resolve().parents[2]
    beside = [base.parent / "shared" / "data" for base in (Path.cwd(), checkout)]
    return [*([Path(given).expanduser()] if given else []), *beside, user_cache()]


def _find(entry: CatalogueEntry) -> Path | None:
    names = [*entry.folders, entry.name]
    candidates = (folder / name for folder in data_folders() for name in names)
    return next((path for path in candidates if (path / "dataset.json").is_file()), None)


def _phantoms(folder: Path) -> Path:
    from medseg.data.phantom import write_phantoms

    if not (folder / "dataset.json").is_file():
        with _scratch(folder) as scratch:
            write_phantoms(scratch / "phantom")
            _publish(scratch / "phantom", folder)
    return folder


def _download(entry: CatalogueEntry) -> Path:
    from rich.console import Console

    archive, folder = user_cache() / Path(entry.url).name, user_cache() / entry.folders[0]
    lines = (entry.title, f"from {entry.url}", f"licence {entry.licence}", f"cite {entry.citation}")
    Console(stderr=True).print("\n".join(lines), highlight=False)
    with _scratch(folder) as scratch:
        download(entry.url, archive, size=entry.size, sha256=entry.sha256, md5=entry.md5)
        found = next(iter(sorted(extract(archive, scratch / "all").rglob("dataset.json"))), None)
        if found is None:
            raise BadDataset("the archive holds no dataset.json", path=archive)
        _publish(found.parent, folder)
    archive.unlink(missing_ok=True)
    return folder


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder of this process beside ``folder``, removed in any case. Raises ResourceError if it cannot be made."""
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch
    except OSError as error:
        fix = "free space, or set XDG_CACHE_HOME to a folder that can be written"
        raise ResourceError(f"cannot be written: {error.strerror or error}", path=folder, fix=fix) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(made: Path, folder: Path) -> None:
    """Put a finished folder in its place; another process may have been faster, with the same content."""
    try:
        os.replace(made, folder)
    except OSError:
        if not (folder / "dataset.json").is_file():
            raise
