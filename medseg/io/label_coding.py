"""How the pixels of a label file become label values: as they are, by colour, or one class from a value on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medseg.errors import BadLabels

MOST_LISTED = 8
LARGEST_LABEL = 65_535  # values index tables
Color = tuple[int, int, int]


def label_fault(values: Collection[int], ignore_label: int | None) -> str | None:
    """What keeps label values, the background's 0 included, from being those of classes; None: they can be.

    Args:
        values: of all classes, each once.
        ignore_label: value of voxels without a label.
    """
    taken = [*values, *([] if ignore_label is None else [ignore_label])]
    if len(set(values)) < 2:
        return "needs two or more different values: the background and a class"
    if ignore_label in values:
        return f"the ignore label {ignore_label} is a class too (expected different values)"
    if len(set(taken)) < len(taken):
        return "two names have one value"
    wrong = next((value for value in taken if not 0 <= value <= LARGEST_LABEL), None)
    return None if wrong is None else f"{wrong} is not within 0..{LARGEST_LABEL}"


@dataclass(frozen=True)
class LabelCoding:
    """What the numbers of a label file stand for.

    Attributes:
        colors: red, green and blue, 0 to 255 -> label value; none: the file holds label values.
        threshold: every value from here on is label 1, and every other 0; None: values are labels. 1 makes one class
            of numbered objects.
    """

    colors: Mapping[Color, int] = field(default_factory=dict)
    threshold: float | None = None

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Label values (1, *S) of what a file holds, (1, *S) or, with colours, (3, *S) or (1, *S) of grey.

        Raises:
            BadLabels: colours that the map lacks; they are listed with their numbers of pixels.
        """
        if self.colors:
            stored = self._by_color(stored)
        return stored if self.threshold is None else (stored >= self.threshold).astype(np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for keys of caches."""
        colors = sorted([*color, value] for color, value in self.colors.items())
        return {"colors": colors, "threshold": self.threshold}

    def _by_color(self, stored: np.ndarray) -> np.ndarray:
        red, green, blue = (stored[c % len(stored)].astype(np.int64) for c in range(3))
        codes = (red << 16) + (green << 8) + blue
        labels = np.full(codes.shape, -1, np.int32)
        for color, value in self.colors.items():
            labels[codes == _code(color)] = value
        unknown, counts = np.unique(codes[labels < 0], return_counts=True)
        if unknown.size:
            raise BadLabels(_not_in_map(unknown, counts, self.colors), fix="add them to 'colors' in dataset.json")
        return labels[None]


def _code(color: Color) -> int:
    return (color[0] << 16) + (color[1] << 8) + color[2]


def _not_in_map(unknown: np.ndarray, counts: np.ndarray, known: Mapping[Color, int]) -> str:
    often = np.argsort(-counts)[:MOST_LISTED]
    found = ", ".join(
        f"({code >> 16}, {code >> 8 & 255}, {code & 255}) ({count} pixels)"
        for code, count in zip(unknown[often].tolist(), counts[often].tolist(), strict=True)
    )
    more = f" and {len(unknown) - MOST_LISTED} more" if len(unknown) > MOST_LISTED else ""
    return f"colours {found}{more} are not in the map (expected {', '.join(map(str, known))})"
