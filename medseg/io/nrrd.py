"""Check an NRRD header before ITK reads the file. Format: https://teem.sourceforge.net/nrrd/format.html."""

from __future__ import annotations

from pathlib import Path

from medseg.errors import BadGeometry, UnreadableFile, UnsafeArtefact

_HEADER_LIMIT = 1 << 20  # bytes


def check_nrrd(path: Path) -> None:
    """Refuse what ITK would follow or change without a word.

    Raises:
        UnreadableFile: not an NRRD file.
        UnsafeArtefact: the voxels would come from another file.
        BadGeometry: spacings that are not finite and positive.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_LIMIT).partition(b"\n\n")[0].decode("latin-1")
    if not head.startswith("NRRD"):
        raise UnreadableFile("is not an NRRD file (it does not begin with 'NRRD')")
    for line in head.splitlines():
        key, _, value = line.partition(":")
        if key.lower().replace(" ", "") == "datafile":
            problem = f"its voxels are in another file, '{value.strip()}'"
            raise UnsafeArtefact(problem, fix="convert it to one .nrrd file with its voxels inside")
        if key.lower() == "spacings" and not all(_positive(text) for text in value.split()):
            raise BadGeometry(f"spacings are '{value.strip()}' (must be finite and > 0 mm)", fix="re-export the file")


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf") or text.lower() == "nan"  # nan marks an axis that is not spatial
    except ValueError:
        return False
