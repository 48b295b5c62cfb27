"""Grey and colour pictures of one dataset: brought to one kind by choice, never silently."""

from __future__ import annotations

import numpy as np

from medseg.errors import UsageError, nearest
from medseg.io import Volume

COLORS = ("keep", "rgb", "grey")
CHANNELS = {"rgb": ("R", "G", "B"), "grey": ("grey",)}
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L
COLOR_FIX = "set data.color=rgb or data.color=grey to bring all pictures to one kind"


def checked_color(color: str) -> str:
    """The name itself. Raises UsageError for one that is not in `COLORS`."""
    if color not in COLORS:
        raise UsageError(f"color is '{color}': {nearest(str(color), COLORS)}")
    return color


def in_color(volume: Volume, color: str) -> Volume:
    """A picture in the kind of the dataset; volumes, and pictures of another number of channels, stay as they are.

    Args:
        volume: (1 or 3, H, W).
        color: "rgb" repeats a grey channel, "grey" takes the luminance, "keep" changes nothing.
    """
    channels = len(volume.array)
    if volume.ndim != 2:
        return volume
    if color == "rgb" and channels == 1:
        return Volume(np.repeat(volume.array, 3, axis=0), volume.geometry)
    if color == "grey" and channels == 3:
        grey = np.tensordot(np.asarray(LUMINANCE, np.float32), volume.array.astype(np.float32), 1)
        return Volume(grey[None], volume.geometry)
    return volume
