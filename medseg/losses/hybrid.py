"""The hybrid loss of UNet++ (Zhou et al. 2019, arXiv 1912.05074), and the trap in its literal form.

As remembered from the paper, whose text was not at hand: L(Y, P) = -1/N sum_c sum_n [y log p + 2 y p / (y^2 + p^2)],
with y and p of one pixel, added up over the four heads with equal weights. Read literally, every term vanishes where
y = 0, so with one sigmoid channel "everything is foreground" is the optimum. Softmax channels, background included,
escape: there a probability can only grow at the expense of another.
"""

from __future__ import annotations

from torch import Tensor

from medseg.errors import UsageError, nearest
from medseg.losses import IGNORE, LOSSES, Loss
from medseg.losses.cross_entropy import at_least_float32
from medseg.losses.dice_ce import make_dice_ce

DICE_MODES = ("sum", "pixel")


@LOSSES.register("hybrid")
def make_hybrid(*, dice_mode: str = "sum") -> Loss:
    """UNet++'s cross-entropy + Dice.

    Args:
        dice_mode: ``"sum"``: Dice of the sums over all pixels of the batch, smooth 1, as in the official code, plus
            cross-entropy. ``"pixel"``: the formula read literally, a Dice per pixel; it refuses a single channel.

    Raises:
        UsageError: for an unknown mode; and, when called with one channel, in mode ``"pixel"``.
    """
    if dice_mode not in DICE_MODES:
        raise UsageError(f"unknown dice_mode '{dice_mode}': {nearest(dice_mode, DICE_MODES)}")
    return pixel_hybrid if dice_mode == "pixel" else make_dice_ce(batch_dice=True, smooth=1.0)


def pixel_hybrid(logits: Tensor, labels: Tensor) -> Tensor:
    """-mean of log p + 2 p / (1 + p^2), p the probability of the voxel's label: the formula with one-hot y; >= -1.

    Args:
        logits: (B, K, *S), K >= 2.
        labels: (B, 1, *S) int64, `IGNORE` where unlabelled.

    Raises:
        UsageError: for K = 1, where predicting foreground everywhere would be optimal.
    """
    if logits.shape[1] == 1:
        raise UsageError(
            "loss 'hybrid' with dice_mode 'pixel' and one channel is minimal when everything is foreground",
            fix="use dice_mode=sum, or a softmax target with a background channel",
        )
    labelled = labels != IGNORE
    log_p = at_least_float32(logits).log_softmax(1).gather(1, labels.clamp(min=0))
    p = log_p.exp()
    gain = (log_p + 2 * p / (1 + p**2)) * labelled
    return -gain.sum() / labelled.sum().clamp(min=1)
