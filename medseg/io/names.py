"""Names that become file names: the one check of every text of a file that chooses where something is written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from medseg.errors import BadDataset

MAX_BYTES = 200  # leaves room for "_probabilities.nii.gz" and the temporary name of an atomic write: 255 are allowed
FAULTS = {
    "is empty": re.compile(r"\A\s*\Z"),
    "leads to another folder": re.compile(r"[/\\]|\A[A-Za-z]:"),
    "is hidden, or a folder above": re.compile(r"\A\."),
    "begins or ends with a space, or ends in a dot": re.compile(r"\A\s|[\s.]\Z"),
}
UNSEEN = {"Cc", "Cs", "Zl", "Zp"}  # control, halves of characters (bytes that are not UTF-8), breaks


def same_name(text: str) -> str:
    """The form in which names are compared and kept: Unicode's composed one (NFC), whatever a disk makes of it."""
    return unicodedata.normalize("NFC", text)


def plain_name(text: object, what: str, *, path: str | Path | None = None, fix: str | None = None) -> str:
    """The text, if it names one visible file or folder in any folder of any system.

    Args:
        text: an id, a name.
        what: it is, for the error, e.g. "case".
        path: the file that says so.
        fix: what the user can do.

    Raises:
        BadDataset: no text, empty, hidden, over 200 bytes, or with a separator, a drive, a control character, bytes
            that are not UTF-8, or a space or dot where Windows drops it.
    """
    fault = name_fault(text) if isinstance(text, str) else "is no text"
    if fault is None:
        return str(text)
    shown = repr(text) if len(repr(text)) <= 60 else f"{repr(text)[:57]}..."
    problem = f"{what} {shown} is no file name: it {fault}"
    raise BadDataset(problem, path=path, fix=fix or "use letters, digits, - and _")


def name_fault(text: str) -> str | None:
    """What keeps a text from being a plain file name, or None."""
    found = next((fault for fault, pattern in FAULTS.items() if pattern.search(text)), None)
    unseen = next((letter for letter in text if unicodedata.category(letter) in UNSEEN), None)
    if unseen is not None:
        return "holds bytes that are not UTF-8" if "\ud800" <= unseen <= "\udfff" else f"holds {unseen!a}"
    size = len(text.encode())
    return found or (f"has {size} bytes (at most {MAX_BYTES})" if size > MAX_BYTES else None)


def plain_names(names: Iterable[str], what: str, *, path: str | Path | None = None, fix: str | None = None) -> None:
    """Refuse names of which one is no `plain_name`, or two are one file where capitals or accents are not told apart.

    Raises:
        BadDataset: naming them.
    """
    known: dict[str, str] = {}
    for name in dict.fromkeys(names):
        plain_name(name, what, path=path, fix=fix)
        first = known.setdefault(same_name(name).casefold(), name)
        if first != name:
            problem = f"{what}s '{first}' and '{name}' would be one file on many systems"
            raise BadDataset(problem, path=path, fix=fix or "name them apart by more than capitals or accents")
