"""Which files are DICOM by their first bytes, and which files beside slices are known not to be slices."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = "DICOMDIR"  # the standard's name for a list of the files of a medium
_VALUE_REPRESENTATIONS = {b"UI", b"CS", b"UL", b"DA", b"TM", b"LO", b"SH", b"OB"}  # of the first elements
_FIRST_ELEMENTS = (0x0000, 0x0001, 0x0005, 0x0008, 0x0012, 0x0013, 0x0014, 0x0016, 0x0018)
_NOTES = (
    ".txt",
    ".md",
    ".rst",
    ".csv",
    ".tsv",
    ".json",
    ".xml",
    ".html",
    ".htm",
    ".pdf",
    ".xls",
    ".xlsx",
    ".doc",
    ".docx",
)
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".nii", ".nrrd", ".mha")
_PROGRAMS = (".exe", ".dll", ".py", ".sh", ".bat", ".inf", ".ini", ".cfg", ".yaml", ".yml", ".log", ".db", ".sqlite")
_OTHER_ENDINGS = (*_NOTES, *_PICTURES, *_PROGRAMS, ".zip", ".gz", ".md5", ".sha256")
_OTHER_NAMES = ("readme", "license", "copying", "changelog", "version")


def bears_mark(path: Path) -> bool:
    """Whether a file begins as DICOM does: 128 bytes and "DICM", or, as of old, at once with its first elements."""
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or _begins_bare(start)


def is_other_file(name: str) -> bool:
    """Whether a file that is no DICOM was never meant to be, by its name: a note, a table, a picture."""
    lower = name.lower()
    return lower.endswith(_OTHER_ENDINGS) or lower in _OTHER_NAMES


def _begins_bare(start: bytes) -> bool:
    """An element of group 2 or 8 in little endian, explicit or implicit."""
    group, element = int.from_bytes(start[:2], "little"), int.from_bytes(start[2:4], "little")
    if len(start) < 132 or (group, element) not in {(2, 0), (2, 1), *((8, known) for known in _FIRST_ELEMENTS)}:
        return False
    return start[4:6] in _VALUE_REPRESENTATIONS or int.from_bytes(start[4:8], "little") < len(start)
