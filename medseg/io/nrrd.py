"""Check an NRRD file before ITK reads it, which follows any path in the header and never reaches gzip's checksum.

Format: https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from medseg.errors import BadGeometry, UnreadableFile, UnsafeArtefact

_HEADER_LIMIT = 1 << 20  # bytes
_CHUNK = 1 << 20


def check_nrrd(path: Path) -> None:
    """Refuse what ITK would follow or change without a word.

    Raises:
        UnreadableFile: not an NRRD file.
        UnsafeArtefact: the voxels would come from another file.
        BadGeometry: spacings that are not finite and positive.
    """
    fields, _ = _read_fields(path)
    if "datafile" in fields:
        problem = f"its voxels are in another file, '{fields['datafile']}'"
        raise UnsafeArtefact(problem, fix="convert it to one .nrrd file with its voxels inside")
    spacings = fields.get("spacings", "")
    if not all(_positive(text) for text in spacings.split()):
        raise BadGeometry(f"spacings are '{spacings}' (must be finite and > 0 mm)", fix="re-export the file")


def check_nrrd_voxels(path: Path, *, at_most: int) -> None:
    """Unpack gzip voxels to compare their checksum.

    Args:
        path: a file that `check_nrrd` accepts.
        at_most: bytes that the header's sizes can need.

    Raises:
        UnreadableFile: truncated, damaged or too long.
    """
    fields, start = _read_fields(path)
    if fields.get("encoding", "").lower() not in ("gzip", "gz"):
        return
    found = 0
    with path.open("rb") as file:
        file.seek(start)
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                while found <= at_most and (block := stream.read(_CHUNK)):
                    found += len(block)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            problem = f"its gzip stream is truncated or damaged: {error}"
            raise UnreadableFile(problem, fix="copy or export the file again") from None
    if found > at_most:
        raise UnreadableFile("holds more voxels than its header promises", fix="copy or export the file again")


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's ``key: value`` lines, keys in lower case without spaces, and the byte after the header."""
    with path.open("rb") as file:
        head = file.read(_HEADER_LIMIT)
    if not head.startswith(b"NRRD"):
        raise UnreadableFile("is not an NRRD file (it does not begin with 'NRRD')")
    end = re.search(rb"\r?\n\r?\n", head)
    text = head[: end.start() if end else None].decode("latin-1")
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    fields = {key.lower().replace(" ", ""): value.strip() for key, separator, value in pairs if separator}
    if end is None and "datafile" not in fields:
        raise UnreadableFile("is not a whole NRRD file: no empty line ends its header")
    return fields, end.end() if end else len(head)


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf") or text.lower() == "nan"  # nan marks an axis that is not spatial
    except ValueError:
        return False
