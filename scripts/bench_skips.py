"""Skip paths measured: overhead of the protocol, adaptation to a new site, and a laboratory of skip families.

    python scripts/bench_skips.py --overhead [--rounds 60]
    python scripts/bench_skips.py --adapt --output DIR [--minutes 1 --base-minutes 10 --seeds 0 1 2]
    python scripts/bench_skips.py --laboratory --output DIR [--minutes 5 | --steps 200] [--seeds 0 1 2 --tasks lungs]

Overhead: training steps of `unet` and of a hand-written U-Net with the same layers and weights take turns. Adaptation:
a U-Net trained on one domain meets 8 labelled cases of another. Laboratory: one U-Net trunk with each family of skips,
as wide as gives it the plain one's parameters, and once more as wide as gives it the plain one's time; paired tests
over the test cases (seeds averaged) with Holm's correction. Rows are kept in DIR, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from _skip_adapt import adaptation
from _skip_bench import FAMILIES, Budget, build, parameters, step  # noqa: F401 (for the tests)
from _skip_laboratory import laboratory, matched  # noqa: F401

from medseg.blocks.conv import ConvNormAct, conv, upsample_conv
from medseg.device import choose_profile
from medseg.models import create_model

SIZES = {2: (2, 1, 96, 96), 3: (1, 1, 24, 32, 24)}  # small: an overhead of Python shows most


class HandWritten(nn.Module):
    """A U-Net without any protocol, the layers in the order of `unet`."""

    def __init__(self, spatial_dims: int, base_channels: int, depth: int) -> None:
        super().__init__()
        width = [base_channels * 2**i for i in range(depth + 1)]
        pair = lambda a, b, s: nn.Sequential(  # noqa: E731
            ConvNormAct(spatial_dims, a, b, stride=s), ConvNormAct(spatial_dims, b, b)
        )
        self.down = nn.ModuleList(pair(a, b, 1 + (i > 0)) for i, (a, b) in enumerate(pairwise([1, *width])))
        self.up = nn.ModuleList(upsample_conv(spatial_dims, b, a, 2) for a, b in pairwise(width))
        self.stages = nn.ModuleList(pair(2 * c, c, 1) for c in width[:-1])
        self.head = conv(spatial_dims, width[0], 2, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, *S) -> (B, 2, *S)."""
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        for level in reversed(range(len(self.stages))):
            x = self.stages[level](torch.cat((self.up[level](x), skips[level]), dim=1))
        return self.head(x)


def twins(spatial_dims: int, base_channels: int = 16, depth: int = 3) -> tuple[nn.Module, nn.Module]:
    """`unet` and the hand-written network with the same weights."""
    ours = create_model("unet", spatial_dims=spatial_dims, base_channels=base_channels, depth=depth)
    hand = HandWritten(spatial_dims, base_channels, depth)
    hand.load_state_dict(dict(zip(hand.state_dict(), ours.state_dict().values(), strict=True)))
    return ours, hand


def overhead(rounds: int) -> str:
    """Step times of the twins, in turns."""
    lines = [
        "| | hand-written, s | unet, s | median ratio of a pair | ratio of minima | outputs |",
        "|---|---|---|---|---|---|",
    ]
    for dims, shape in SIZES.items():
        torch.manual_seed(0)
        ours, hand = twins(dims)
        image = torch.randn(shape)
        same = "identical" if torch.equal(ours(image), hand(image)) else "differ"
        pairs = []
        for turn in range(rounds + 2):
            order = (hand, ours) if turn % 2 else (ours, hand)
            times = {id(model): step(model, image) for model in order}
            pairs.append((times[id(hand)], times[id(ours)]))
        a, b = (list(column) for column in zip(*pairs[2:], strict=True))
        ratio = median(y / x for x, y in zip(a, b, strict=True))
        shown = f"{median(a):.4f} | {median(b):.4f} | {ratio:.4f} | {min(b) / min(a):.4f}"
        lines.append(f"| {dims}D | {shown} | {same} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for flag in ("overhead", "adapt", "laboratory"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/bench_skips"))
    parser.add_argument("--minutes", type=float, default=1.0, help="of each training or adaptation")
    parser.add_argument("--base-minutes", type=float, default=10.0, help="of the network that is adapted")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="*", default=["lungs", "hippocampus", "isic"])
    parser.add_argument("--lr", type=float, default=1e-3, help="of adaptations")
    parser.add_argument("--limit", type=int, help="cases of each part, to try the script")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, help="instead of minutes: for a machine that others use too")
    parser.add_argument("--base-steps", type=int, help="instead of base minutes")
    options = parser.parse_args()
    options.budget = Budget(options.minutes, options.steps)
    options.base = Budget(options.base_minutes, options.base_steps)
    profile = choose_profile()
    if options.overhead:
        print(overhead(options.rounds))
    for name, measure in (("adapt", adaptation), ("laboratory", laboratory)):
        if getattr(options, name):
            text = measure(options, profile)
            (options.output / f"{name}.md").write_text(text + "\n")
            print(text)


if __name__ == "__main__":
    main()
