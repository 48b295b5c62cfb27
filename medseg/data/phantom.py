"""Phantoms of an abdomen, generated: data that is there at once, without network and without licence.

A body with liver, spleen, two kidneys and a lesion inside the liver lies among structures of no label (muscle, spine,
vessels, stomach, bowel) whose intensities are like theirs: only place and shape tell them apart. Every case has its own
anatomy, pose, spacing, orientation in the file, bias field, noise and intensity scale. The volumes are synthetic; a
score on them says that the software works, nothing about medicine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.spatial.transform import Rotation

from medseg.data.dataset import SegmentationDataset, open_dataset
from medseg.io import Geometry, Volume, write_json, write_labels, write_volume

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidney_right": 3, "kidney_left": 4, "lesion": 5}
SHAPE = (52, 44, 40)
SPACING_MM = 2.0  # of SHAPE; together they give the field of view, 104 x 88 x 80 mm
SUPERSAMPLING = 2
BEND_MM = 2.0
BIAS = 0.2
NOISE = 0.07  # of the liver's intensity

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Part:
    """An ellipsoid of one tissue: centre and half axes in mm along (right, anterior, superior), mean intensity."""

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    intensity: float
    label: int = 0
    rotation: np.ndarray | None = None  # (3, 3)


FRAME = (  # what hardly varies: fat, muscle, fat of the cavity, spine, back muscles, aorta, vena cava
    Part((0, 0, 0), (45, 36, 75), 0.35),
    Part((0, -1, 0), (40, 31, 70), 0.75),
    Part((0, 3, 0), (36, 25, 65), 0.42),
    Part((0, -21, 0), (8, 8, 120), 0.55),
    Part((11, -18, -18), (6, 6, 28), 0.75),
    Part((-11, -18, -18), (6, 6, 28), 0.75),
    Part((-3, -9, 0), (3.5, 3.5, 120), 1.2),
    Part((5, -9, 0), (4, 3.5, 120), 1.05),
)
STOMACH_AND_GALLBLADDER = (Part((-13, 11, 15), (11, 10, 13), 0.88), Part((14, 15, -6), (5, 6, 8), 0.55))
ORGANS = (
    Part((17, 4, 13), (18, 19, 18), 1.0, LABELS["liver"]),
    Part((-24, -5, 15), (10, 12, 14), 0.85, LABELS["spleen"]),
    Part((19, -12, -13), (8.5, 8.5, 14), 1.12, LABELS["kidney_right"]),
    Part((-19, -12, -11), (8.5, 8.5, 14), 1.12, LABELS["kidney_left"]),
)
LESION_RADIUS_MM = (9.0, 10.5)
LESION_INTENSITY = 0.72


def write_phantoms(
    folder: str | Path,
    *,
    cases: int = 24,
    test_cases: int = 8,
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
) -> SegmentationDataset:
    """Write an nnU-Net raw dataset of phantoms: imagesTr, labelsTr, imagesTs, labelsTs, dataset.json.

    Args:
        folder: made if need be; files of the same name are replaced.
        cases: training cases.
        test_cases: test cases, with labels.
        seed: the same seed writes the same voxels; case n does not depend on how many there are.
        shape: typical size in voxels, as for `generate_phantom`.

    Returns:
        The dataset, opened.
    """
    root = Path(folder)
    for part, first, count in (("Tr", 0, cases), ("Ts", 1_000_000, test_cases)):
        for sub in ("images", "labels"):
            (root / f"{sub}{part}").mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, labels, affine = generate_phantom(np.random.default_rng([seed, first + number]), shape=shape)
            geometry = Geometry(image.shape, affine)
            name = f"phantom_{'test_' if part == 'Ts' else ''}{number:03d}"
            write_volume(root / f"images{part}" / f"{name}_0000.nii.gz", Volume(image[None], geometry))
            write_labels(root / f"labels{part}" / f"{name}.nii.gz", labels, geometry)
    write_json(root / "dataset.json", _description(cases, seed))
    return open_dataset(root)


def generate_phantom(
    rng: np.random.Generator, *, shape: tuple[int, int, int] = SHAPE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One abdomen.

    Args:
        rng: the only source of randomness.
        shape: size in voxels along (right, anterior, superior) at typical spacing. The field of view is fixed in mm;
            the case's own spacing and orientation change and permute the size.

    Returns:
        Image (*S) int16, arbitrary units; labels (*S) uint8, as `LABELS`; affine (4, 4), voxel to RAS+ mm.
    """
    parts = [_posed(part, rng) for part in _anatomy(rng)]
    size, affine = _grid(rng, np.array(shape))
    tissue, labels = _paint(parts, _patient_points(rng, size, affine), affine)
    image = _scanned(rng, _blocks(tissue).mean(axis=(1, 3, 5)))
    fractions = np.stack([_blocks(labels == value).mean(axis=(1, 3, 5)) for value in LABELS.values()])
    return _stored(rng, image, fractions.argmax(axis=0).astype(np.uint8), affine)


def _description(cases: int, seed: int) -> dict[str, object]:
    return {
        "name": "phantom",
        "description": f"SYNTHETIC abdominal phantoms generated by medseg (seed {seed}); no patient was scanned",
        "synthetic": True,
        "licence": "CC0-1.0",
        "channel_names": {"0": "synthetic MR"},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }


def _anatomy(rng: np.random.Generator) -> Iterator[Part]:
    """All parts in the order of painting: later ones lie on top; the lesion lies wholly inside the liver."""
    yield from FRAME
    yield from STOMACH_AND_GALLBLADDER
    for _ in range(rng.integers(5, 9)):  # bowel
        center, radii = rng.uniform((-25, 4, -38), (25, 19, -12)), rng.uniform(5, 9, 3)
        yield Part(_triple(center), _triple(radii), rng.uniform(0.6, 1.2))
    yield from ORGANS
    liver = ORGANS[0]
    direction = rng.normal(size=3)
    offset = 5 * direction / np.linalg.norm(direction) * rng.uniform(0, 1) ** (1 / 3)
    radii = rng.uniform(*LESION_RADIUS_MM) * rng.uniform(0.95, 1.1, 3)
    yield Part(_triple(np.array(liver.center) + offset), _triple(radii), LESION_INTENSITY, LABELS["lesion"])


def _posed(part: Part, rng: np.random.Generator) -> Part:
    """The part with a case's own place, size, direction and intensity; large and long parts move least."""
    loose = 0.3 if max(part.radii) > 50 or part.label == LABELS["lesion"] else 1.0
    return replace(
        part,
        center=_triple(np.array(part.center) + loose * rng.uniform(-2.5, 2.5, 3)),
        radii=_triple(np.array(part.radii) * (1 + loose * rng.uniform(-0.14, 0.14, 3))),
        intensity=part.intensity * rng.uniform(0.95, 1.05),
        rotation=Rotation.from_euler("xyz", loose * rng.uniform(-15, 15, 3), degrees=True).as_matrix(),
    )


def _grid(rng: np.random.Generator, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Size (3,) and affine (4, 4) of the scan: spacing varies, slices are thicker, the box is a little oblique."""
    field_of_view = np.array(SHAPE) * SPACING_MM
    in_plane, slices = rng.uniform(0.9, 1.1), rng.uniform(0.95, 1.6)
    size = np.maximum(np.rint(shape / (in_plane, in_plane, slices)), 2).astype(int)
    oblique = Rotation.from_euler("xyz", rng.uniform(-8, 8, 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = oblique * (field_of_view / size).round(3)
    affine[:3, 3] = rng.uniform(-4, 4, 3) - affine[:3, :3] @ ((size - 1) / 2)
    return size, affine


def _patient_points(rng: np.random.Generator, size: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """mm coordinates (3, *size * SUPERSAMPLING) of every sub-voxel, bent by a smooth random deformation."""
    axes = [((np.arange(n * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - 0.5).astype(np.float32) for n in size]
    i, j, k = np.meshgrid(*axes, indexing="ij", sparse=True)
    rows = affine[:3].astype(np.float32)
    return np.stack([x * i + y * j + z * k + origin + BEND_MM * _wave(rng, (i, j, k)) for x, y, z, origin in rows])


def _paint(parts: list[Part], points: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tissue intensity and label of every sub-voxel. Only the box around each part is visited."""
    tissue = np.zeros(points.shape[1:], dtype=np.float32)
    labels = np.zeros(points.shape[1:], dtype=np.uint8)
    for part in parts:
        box = _box(part, points.shape[1:], affine)
        inside = _inside(part, points[(slice(None), *box)])
        if part.label == LABELS["lesion"]:
            inside &= labels[box] == LABELS["liver"]
        tissue[box][inside] = part.intensity
        labels[box][inside] = part.label
    return tissue, labels


def _box(part: Part, size: tuple[int, ...], affine: np.ndarray) -> Box:
    """Sub-voxels that can lie inside the part, whatever its rotation."""
    center = np.linalg.solve(affine[:3, :3], np.array(part.center) - affine[:3, 3])
    reach = (max(part.radii) + BEND_MM) / np.linalg.norm(affine[:3, :3], axis=0)
    start, stop = (SUPERSAMPLING * (center + 0.5 + sign * reach) for sign in (-1, 1))
    return tuple(slice(max(0, int(a)), max(0, min(n, int(b) + 1))) for a, b, n in zip(start, stop, size, strict=True))


def _inside(part: Part, points: np.ndarray) -> np.ndarray:
    scaled = ((np.eye(3) if part.rotation is None else part.rotation) / np.array(part.radii)).T
    rows = np.column_stack([scaled, -scaled @ np.array(part.center)]).astype(np.float32)
    x, y, z = points
    return sum((a * x + b * y + c * z + d) ** 2 for a, b, c, d in rows) <= 1


def _blocks(array: np.ndarray) -> np.ndarray:
    """Sub-voxels of each voxel on axes 1, 3, 5."""
    return array.reshape([n for size in array.shape for n in (size // SUPERSAMPLING, SUPERSAMPLING)])


def _scanned(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Bias field, Rician noise and an arbitrary scale on the true intensities."""
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in image.shape), indexing="ij", sparse=True)
    biased = image * (1 + BIAS * _wave(rng, axes))
    real, imaginary = rng.normal(scale=NOISE, size=(2, *image.shape))
    return rng.uniform(200, 1200) * np.hypot(biased + real, imaginary)


def _wave(rng: np.random.Generator, axes: Sequence[np.ndarray]) -> np.ndarray:
    """A smooth field between -1 and 1: one random wave along each axis, multiplied."""
    frequency, phase = rng.uniform(1.5, 5, len(axes)), rng.uniform(0, 2 * np.pi, len(axes))
    waves = [np.sin(f * axis / axis.max() + p) for f, p, axis in zip(frequency, phase, axes, strict=True)]
    return rng.uniform(0.5, 1) * waves[0] * waves[1] * waves[2]


def _stored(
    rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One of the 48 axis orders and flips in which a file may hold the same scan."""
    order = list(permutations(range(3)))[rng.integers(6)]
    orientation = np.column_stack([order, rng.choice([-1, 1], 3)])
    affine = affine @ inv_ornt_aff(orientation, image.shape)
    image = np.rint(image).astype(np.int16)
    return apply_orientation(image, orientation), apply_orientation(labels, orientation), affine


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
