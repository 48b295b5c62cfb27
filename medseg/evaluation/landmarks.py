"""Landmarks: points that belong together by their number, compared in pixels and in mm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medseg.errors import BadGeometry, UsageError

THRESHOLDS_MM = (2.0, 2.5, 3.0, 4.0)  # of the success rates, as in the ISBI 2015 cephalometric challenge

LandmarkScores = dict[str, float | int | None]


def evaluate_landmarks(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    spacing: Sequence[float],
    thresholds: Sequence[float] = THRESHOLDS_MM,
    structures: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, LandmarkScores]:
    """Compare landmarks of one image.

    Args:
        prediction: (N, D) positions in voxels, in the order of the spacing; NaN where a landmark was not found.
        reference: (N, D); NaN where there is none, which leaves the landmark out.
        spacing: mm per voxel along each of the D axes.
        thresholds: mm, of the success rates.
        structures: name -> numbers of its landmarks.

    Returns:
        Scores of "all" landmarks and of every structure: ``mse`` (squared coordinate error in voxels, mean over points
        and axes, as landmark networks report it), ``mse_mm2``, ``mean_radial_error_px`` in voxels,
        ``mean_radial_error`` and ``sd_radial_error`` in mm, ``success_rate_Xmm``
        (share of the reference's landmarks found within X mm: a missing one is a failure),
        ``n``, and ``n_missing``, which the errors cannot contain. None is undefined.

    Raises:
        BadGeometry: shapes that do not fit each other or the spacing.
        UsageError: a structure that names a landmark that does not exist.
    """
    prediction, reference = np.asarray(prediction, np.float64), np.asarray(reference, np.float64)
    if prediction.shape != reference.shape or reference.ndim != 2 or reference.shape[1] != len(spacing):
        shapes = f"prediction {prediction.shape}, reference {reference.shape}, spacing of {len(spacing)} axes"
        raise BadGeometry(f"landmarks do not fit each other: {shapes} (expected (N, D), (N, D) and D)")
    groups: dict[str, Sequence[int]] = {"all": range(len(reference)), **(structures or {})}
    for name, members in groups.items():
        if any(not 0 <= index < len(reference) for index in members):
            raise UsageError(f"structure '{name}' names a landmark outside of 0 to {len(reference) - 1}")
    return {
        name: _scores(prediction[list(members)], reference[list(members)], np.asarray(spacing), thresholds)
        for name, members in groups.items()
    }


def _scores(
    prediction: np.ndarray, reference: np.ndarray, spacing: np.ndarray, thresholds: Sequence[float]
) -> LandmarkScores:
    wanted = np.isfinite(reference).all(axis=1)
    offsets = (prediction - reference)[wanted]
    offsets = offsets[np.isfinite(offsets).all(axis=1)]
    radial = np.linalg.norm(offsets * spacing, axis=1)
    n, found = int(wanted.sum()), len(radial)
    return {
        "n": n,
        "n_missing": n - found,
        "mse": float((offsets**2).mean()) if found else None,
        "mse_mm2": float(((offsets * spacing) ** 2).mean()) if found else None,
        "mean_radial_error_px": float(np.linalg.norm(offsets, axis=1).mean()) if found else None,
        "mean_radial_error": float(radial.mean()) if found else None,
        "sd_radial_error": float(radial.std(ddof=1)) if found > 1 else None,
        **{f"success_rate_{mm:g}mm": float((radial <= mm).sum() / n) if n else None for mm in thresholds},
    }
