"""The anatomy of the phantoms: ellipsoids of tissue in mm, and how they vary from case to case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidney_right": 3, "kidney_left": 4, "lesion": 5}


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


def draw_anatomy(rng: np.random.Generator) -> list[Part]:
    """The parts of one body in the order of painting: later ones lie on top."""
    return [_posed(part, rng) for part in _typical(rng)]


def _typical(rng: np.random.Generator) -> Iterator[Part]:
    """What every body has, and bowel and lesion wherever they are in this one."""
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


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
