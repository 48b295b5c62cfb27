"""Networks that see an image as a whole and answer with points; and one function for them and for all others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.data.sampling import check_whole
from medseg.inference.sliding_window import Network, pad_to, sliding_window
from medseg.targets import Target


def segment_array(network: Network, target: Target, image: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Label values (*P) of a prepared image (C, *P), on its own grid.

    Args:
        network: in evaluation mode, maps (B, C, *patch_size) to its output on the CPU.
        target: what the output means.
        image: float32.
        patch_size: of a window, or of the whole image for targets that are not dense.
    """
    if target.dense:
        return target.decode(target.activate(sliding_window(network, image, patch_size)[None]))[0]
    shape = image.shape[1:]
    points = locate(network, target, image, patch_size) / torch.tensor(shape[::-1])
    return target.decode(points[None], shape)[0]


def locate(network: Network, target: Target, image: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Landmarks (N, 2) in pixels of a prepared image (C, rows, columns), x and y; it is padded to the patch.

    Raises:
        UsageError: the image is larger than the patch.
    """
    check_whole(image.shape[1:], patch_size)
    padded, inside = pad_to(image, patch_size)
    points = target.activate(network(padded[None]))[0]
    corner = torch.tensor([part.start for part in reversed(inside)])
    return points * torch.tensor(padded.shape[:0:-1]) - corner
