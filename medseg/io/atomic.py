"""Atomic writes: a reader sees the old file or the new one, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import ResourceError
from medseg.io.ledger import note_output

STALE_SECONDS = 60


@contextlib.contextmanager
def atomic_path(path: str | Path, *, ending: str | None = None) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``; on success it is synced and takes the place of ``path``.

    Args:
        path: the file to write; its folder is made.
        ending: of the temporary name, for libraries that choose a format by it; default: that of ``path``.

    Raises:
        ResourceError: disk full, read-only, no permission ...; the old file is intact and no temporary file stays.
    """
    path = Path(path)
    ending = "".join(path.suffixes[-2:]) if ending is None else ending
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp{ending}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        yield temporary
        sync(temporary)
        note_output(path, temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:
        reason = _os_error(error)
        if reason is None:
            raise
        raise _refused(path, reason) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def require_writable(folder: str | Path) -> None:
    """Make a folder and try that files can be written there, before hours of work are lost.

    Raises:
        ResourceError: they cannot.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = "choose another folder"
        raise ResourceError(f"cannot be written: {error.strerror or error}", path=folder, fix=fix) from None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; what is no character (bytes of a file name that are not UTF-8) as ``\\udcff``.

    Raises:
        ResourceError: it cannot be written; the old file is intact.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: str | Path, data: Any) -> None:
    """Write indented JSON atomically; numpy numbers, numpy arrays and paths become plain ones.

    JSON has neither NaN nor infinity (RFC 8259), and most readers refuse them: both become null, which means undefined.

    Raises:
        ResourceError: it cannot be written; the old file is intact.
        TypeError: ``data`` holds something that is not plain.
    """
    write_text(path, to_json(data))


def to_json(data: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def remove_stale(path: Path) -> None:
    """Remove what killed writers of ``path`` left: their process is gone and the file rests for a minute."""
    for left in path.parent.glob(f".{_escaped(path.name)}.*-*.tmp*"):
        process = left.name.removeprefix(f".{path.name}.").partition("-")[0]
        with contextlib.suppress(OSError):
            if process.isdigit() and not _alive(int(process)) and time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows has no folder to open
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError behind an error: torch hides a full disk in a RuntimeError, whose context tells."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _refused(path: Path, reason: OSError) -> ResourceError:
    written = "The old file is intact." if path.is_file() else ""
    problem = f"cannot be written: {reason.strerror or reason}"
    return ResourceError(problem, path=path, fix="free space or choose another folder", written=written)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _finite(value: Any) -> Any:
    """Plain data in which a number that is not finite is None."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, np.generic | np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
