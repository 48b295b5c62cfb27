"""File endings that can be read, and which of them can hold labels."""

from __future__ import annotations

from pathlib import Path

from medseg.errors import UnreadableFile

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".mha", ".mhd", ".nrrd")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
KNOWN_ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS, *IMAGE_ENDINGS)


def file_ending(path: str | Path) -> str:
    """The known ending of a file name in lower case, e.g. ``".nii.gz"``.

    Raises:
        UnreadableFile: the ending is not one of `KNOWN_ENDINGS`.
    """
    name = Path(path).name.lower()
    for ending in KNOWN_ENDINGS:
        if name.endswith(ending):
            return ending
    raise UnreadableFile(f"unknown kind of file (known: {' '.join(KNOWN_ENDINGS)})", path=path, fix="convert it")


def label_ending(ending: str, highest: int = 0) -> str:
    """The ending for labels up to `highest`, predicted from a file with ``ending``: the same where it can hold them.

    .png stands in for .jpg, which changes them, and for .bmp above 255.
    """
    return ".png" if ending in (".jpg", ".jpeg") or (ending == ".bmp" and highest > 255) else ending
