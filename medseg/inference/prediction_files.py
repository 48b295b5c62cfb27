"""The files of predicted cases: which they are, and that none of them would cost the user another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medseg.data.case import Case
from medseg.data.outputs import check_outputs, real_path, same_names
from medseg.errors import UsageError
from medseg.inference.inputs import Mask
from medseg.io import KNOWN_ENDINGS, file_ending, holds_dicom, label_ending

Files = Mapping[str, Path]  # by the arguments of `Segmentation.save` that name them


def output_files(
    case: Case,
    folder: Path,
    *,
    probabilities: bool,
    dicom_seg: bool,
    uncertainty: str | None = None,
    landmarks: bool = False,
    highest: int = 0,
) -> dict[str, Path]:
    """The files of a case, by the arguments of `Segmentation.save` that name them; `highest` is of the label values."""
    image = case.images[0]
    known = image.name.lower().endswith(KNOWN_ENDINGS) and not os.path.isdir(image)
    files = {"path": folder / f"{case.id}{label_ending(file_ending(image), highest) if known else '.nii.gz'}"}
    if probabilities:
        files["probabilities"] = folder / f"{case.id}_probabilities.nii.gz"
    if uncertainty:
        files["uncertainty"] = folder / f"{case.id}_{uncertainty}.nii.gz"
    if landmarks:
        files["landmarks"] = folder / f"{case.id}.npy"
    if dicom_seg and holds_dicom(image):
        files["dicom_seg"] = folder / f"{case.id}.dcm"
    return files


def refuse_one_name(cases: Sequence[Case], files: Sequence[Files], output: Path) -> None:
    """Refuse cases of which two would be written to one file.

    Raises:
        UsageError: with both and the file.
    """
    spelled = str.casefold if same_names(output) else str
    taken: dict[str, str] = {}
    for case, paths in zip(cases, files, strict=True):
        for name in {spelled(path.name) for path in paths.values()}:
            if name in taken:
                problem = f"the cases '{taken[name]}' and '{case.id}' would both be written to {name}"
                raise UsageError(problem, path=output, fix="name the images apart, or list them in a .csv")
            taken[name] = case.id


def check_prediction_files(
    names: Iterable[str], output: Path, cases: Sequence[Case], mask: Mask | None, *, ours_only: bool
) -> None:
    """Refuse to write into the folder of an image or label, and what `medseg.data.outputs.check_outputs` refuses.

    Args:
        names: of the files.
        output: their folder.
        cases: that are predicted, or there already.
        mask: file or folder of masks, or an array.
        ours_only: whether files that medseg did not write are refused too.
    """
    files = {file for case in cases for file in (*case.images, case.label, case.landmarks) if file is not None}
    single = [file for file in files if not os.path.isdir(file)]
    folders = {parent for file in single for parent in (file.parent, real_path(file).parent)}
    read = [*files, *folders, *([mask] if isinstance(mask, str | Path) else [])]
    check_outputs(output, names, read, ours_only=ours_only)
