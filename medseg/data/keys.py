"""Cached results: where they lie, and keys of what they were made from, so that nothing stale is ever read."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from medseg.data.case import Case


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/medseg``, by default ``~/.cache/medseg``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medseg"


def digest(facts: Any) -> str:
    """SHA-256, as hex, of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def case_key(case: Case) -> str:
    """SHA-256 over the case's files, path, size and modification time (None if not there), and how labels are coded."""
    paths = [*case.images, *filter(None, (case.label, case.landmarks))]
    stats = [path.stat() if path.exists() else None for path in paths]
    files = [[str(p), s and s.st_size, s and s.st_mtime_ns] for p, s in zip(paths, stats, strict=True)]
    return digest(files if case.coding is None else [*files, case.coding.to_dict()])
