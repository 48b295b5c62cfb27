"""Cached results: where they lie, and keys of what they were made from, so that nothing stale is ever read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg.data.case import Case
from medseg.errors import ResourceError
from medseg.io import require_writable

_VOXELS_ELSEWHERE = re.compile(rb"^\s*ElementDataFile\s*=\s*(\S[^\r\n]*?)\s*$", re.MULTILINE)  # of a .mhd
_CHUNK = 1 << 20


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/medseg``, by default ``~/.cache/medseg``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medseg"


def require_cache(folder: Path) -> None:
    """Make a folder of the cache, before hours of work are lost. Raises ResourceError where nothing can be written."""
    try:
        require_writable(folder)
    except ResourceError as error:
        error.fix = "set cache_dir= to a folder that can be written"
        raise


def digest(facts: Any) -> str:
    """SHA-256, as hex, of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def case_key(case: Case) -> str:
    """SHA-256 over the state of a case's files, none of which is read, its id, and how labels are coded.

    A file's state is its absolute path, size, times of the last change of content and of entry, and number on its
    disk (None if it is not there): one that takes another's place with its size and time has another state.
    """
    stats = [(path, path.stat() if path.exists() else None) for path in case_files(case)]
    files = [[str(p.absolute()), s and [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]] for p, s in stats]
    return digest([case.id, files, None if case.coding is None else case.coding.to_dict()])


def content_key(case: Case) -> str:
    """SHA-256 over the bytes of a case's files and how labels are coded: wherever the files lie, whenever copied."""
    parts: list[Any] = [None if case.coding is None else case.coding.to_dict()]
    for path in case_files(case):
        found = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
        parts.append(found.hexdigest())
    return digest(parts)


def case_files(case: Case) -> Iterator[Path]:
    """Images, label and landmarks, each followed by the file of its voxels where the header lies apart (.mhd)."""
    for path in (*case.images, *filter(None, (case.label, case.landmarks))):
        yield path
        if path.name.lower().endswith(".mhd") and path.is_file():
            with path.open("rb") as file:
                named = _VOXELS_ELSEWHERE.search(file.read(_CHUNK))
            if named and named[1].upper() != b"LOCAL":
                yield path.parent / os.fsdecode(named[1])
