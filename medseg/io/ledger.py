"""What medseg wrote into a folder that a user named: a line for each file, so that nothing else is ever replaced."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

LEDGER = ".medseg_outputs"  # one JSON object a line; a folder without it keeps no account
_keeping: set[Path] = set()  # folders of this process's commands; the file itself appears with the first output


def keep_ledger(folder: Path) -> None:
    """Let a folder keep account of what `medseg.io.atomic_path` writes into it, from its first file on."""
    _keeping.add(folder)


def note_output(path: Path, content: Path) -> None:
    """Take down, before ``content`` takes the place of ``path``, what it is: a kill in between loses no file of ours.

    Nothing happens in a folder that keeps no account. Raises OSError.
    """
    if path.parent not in _keeping and not (path.parent / LEDGER).is_file():
        return
    # The break comes first: a line that a full disk cut ends where the next begins.
    line = "\n" + json.dumps({"file": path.name, "sha256": _digest(content)})
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path.parent / LEDGER, flags, 0o666)
    try:
        os.write(handle, line.encode())  # one write at the end of the file: shards of a job share it
    finally:
        os.close(handle)


def first_foreign(paths: Iterable[Path]) -> Path | None:
    """The first path where something is that medseg did not write, or that somebody changed or replaced since."""
    known: dict[Path, dict[str, set[str]]] = {}
    for path in paths:
        if not os.path.lexists(path):
            continue
        if path.parent not in known:
            known[path.parent] = _known(path.parent)
        ours = known[path.parent].get(path.name, set())
        if path.is_symlink() or not path.is_file() or not ours or _digest(path) not in ours:
            return path
    return None


def _known(folder: Path) -> dict[str, set[str]]:
    """Name -> digests of all that was written under it."""
    try:
        lines = (folder / LEDGER).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    known: dict[str, set[str]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            known.setdefault(entry["file"], set()).add(entry["sha256"])
        except (ValueError, KeyError, TypeError, RecursionError):  # a blank, half a line, or a foreign hand
            continue
    return known


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
