"""HybridGNet: an image becomes the landmarks of organs, on a graph of fixed topology, so that every contour is closed.

Paper: Gaggion, Mansilla, Mosquera, Milone, Ferrante, "Improving anatomical plausibility in medical image segmentation
via hybrid graph neural networks", IEEE TMI 2022 (arXiv 2203.10977); MICCAI 2021 (arXiv 2106.09832). Layers, order and
initialisation as read in the official code. A convolutional encoder ends in the mean and variance of a latent
vector; a decoder of Chebyshev graph convolutions turns the vector into node positions, first on a coarse graph, then on
the full one; image-to-graph skips let nodes look at the image where they believe to lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.blocks.graph import (
    ChebConv,
    Edges,
    NodeNorm,
    coarse_edges,
    coarse_sizes,
    ring_edges,
    scaled_laplacian,
    unpooling,
)
from medseg.blocks.skip.image_to_graph import ImageToGraph
from medseg.errors import UsageError, nearest
from medseg.models import MODELS

STATISTICS = ("batch", "running")


class GraphOutput(NamedTuple):
    """What HybridGNet returns in training; its loss is in `medseg.targets.landmarks`.

    Attributes:
        points: (B, N, 2), x and y in units of the image's width and height.
        positions: where the skips looked, (B, M, 2) each, on the full graph (M = N) or the coarse one.
        mean, log_variance: (B, latent) of the latent vector.
    """

    points: Tensor
    positions: tuple[Tensor, ...]
    mean: Tensor
    log_variance: Tensor


@MODELS.register("hybridgnet")
class HybridGNet(nn.Module):
    """Landmarks on a graph, with none to two image-to-graph skips.

    Source: Gaggion et al. 2022, arXiv 2203.10977

    Args:
        spatial_dims: 2.
        in_channels: image channels.
        image_size: the only size that it takes, one number or rows and columns, multiples of 32: the bottleneck is
            fully connected.
        structures: landmarks of each structure. 44 + 50 are the paper's lungs, 26 its heart, twice 23 its clavicles.
        edges: pairs of landmarks; None makes a ring of every structure.
        skip_layers: none, one or two encoder stages, 2 (fine) to 6 (coarse), that the skips look at: the first on the
            coarse graph, the second on the full one. (6, 5) is the paper's best.
        base_channels: of the first encoder stage; the stages have 1, 2, 4, 8, 16, 16 times as many.
        features: of each node of the full graph; half as many on the coarse one.
        latent: length of the latent vector.
        terms: Chebyshev polynomials of each graph convolution.
        norm_axis: what nodes are normalised over: ``"features"`` (as the official code does) or ``"nodes"``.
        statistics: of the encoder's batch normalisation in evaluation: ``"running"``, or ``"batch"`` as in the
            official code, whose result then depends on the other images of a batch.

    Raises:
        UsageError: for settings that do not fit each other, or three dimensions.
    """

    output = "points"

    def __init__(
        self,
        *,
        spatial_dims: int = 2,
        in_channels: int = 1,
        image_size: int | Sequence[int] = 1024,
        structures: Sequence[int] = (44, 50, 26),
        edges: Edges | None = None,
        skip_layers: Sequence[int] = (6, 5),
        base_channels: int = 8,
        features: int = 32,
        latent: int = 64,
        terms: int = 6,
        norm_axis: str = "features",
        statistics: str = "running",
    ) -> None:
        super().__init__()
        self.divisor = _checked_size(image_size, spatial_dims)
        if len(skip_layers) > 2 or not all(2 <= layer <= 6 for layer in skip_layers):
            raise UsageError(f"skip_layers is {tuple(skip_layers)} (at most two numbers of 2 to 6)")
        if not structures or min(structures) < 1:
            raise UsageError(f"structures is {list(structures)} (needs the number of landmarks of each structure)")
        self.skip_layers = tuple(skip_layers)
        self.encoder = Encoder(in_channels, base_channels, statistics)
        widths = self.encoder.widths
        flat = widths[-1] * self.divisor[0] * self.divisor[1] // 32**2
        self.mean, self.log_variance = nn.Linear(flat, latent), nn.Linear(flat, latent)
        skips = [widths[layer - 1] for layer in skip_layers]
        self.decoder = GraphDecoder(structures, edges, latent, features, skips, terms, norm_axis)

    def forward(self, image: Tensor) -> Tensor | GraphOutput:
        """image (B, in_channels, *image_size) -> points (B, N, 2) in 0..1, x before y, not clipped.

        In training a `GraphOutput`, of a random latent vector.
        """
        if tuple(image.shape[2:]) != self.divisor:
            raise UsageError(
                f"image size {tuple(image.shape[2:])} does not fit: the bottleneck is fully connected",
                fix=f"resize or pad to {self.divisor}",
            )
        maps = self.encoder(image)
        flat = maps[-1].flatten(1)
        exact = torch.promote_types(flat.dtype, torch.float32)
        mean, log_variance = self.mean(flat).to(exact), self.log_variance(flat).to(exact)
        latent = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean
        with torch.autocast("cuda" if image.is_cuda else "cpu", enabled=False):  # bfloat16 knows 1/256 of a width only
            latent = latent.to(self.decoder.linear.weight.dtype)
            points, positions = self.decoder(latent, [maps[layer - 1] for layer in self.skip_layers])
        return GraphOutput(points, positions, mean, log_variance) if self.training else points


class Encoder(nn.Module):
    """Six residual blocks; max pooling between them."""

    def __init__(self, in_channels: int, base_channels: int, statistics: str) -> None:
        super().__init__()
        self.widths = [base_channels * factor for factor in (1, 2, 4, 8, 16, 16)]
        inputs = [in_channels, *self.widths[:-1]]
        self.blocks = nn.ModuleList(
            PreActivationBlock(have, want, statistics) for have, want in zip(inputs, self.widths, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> features of every stage, (B, C_i, H / 2^i, W / 2^i) for i = 0 to 5."""
        maps: list[Tensor] = []
        for block in self.blocks:
            maps.append(block(functional.max_pool2d(maps[-1], 2) if maps else image))
        return maps


class PreActivationBlock(nn.Module):
    """Twice norm, ReLU and convolution, added to the input (or a 1x1 convolution of it), then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, statistics: str) -> None:
        super().__init__()
        if statistics not in STATISTICS:
            raise UsageError(f"unknown statistics '{statistics}': {nearest(statistics, STATISTICS)}")
        running = statistics == "running"
        self.norm1 = nn.BatchNorm2d(in_channels, track_running_stats=running)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels, track_running_stats=running)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Sequential()
        if in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels, track_running_stats=running))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        hidden = self.conv1(functional.relu(self.norm1(x)))
        return functional.relu(self.conv2(functional.relu(self.norm2(hidden))) + self.shortcut(x))


class GraphDecoder(nn.Module):
    """Linear layer to the coarse graph, three convolutions, unpooling, two convolutions, positions."""

    laplacian: Tensor
    coarse_laplacian: Tensor
    unpool: Tensor

    def __init__(
        self,
        structures: Sequence[int],
        edges: Edges | None,
        latent: int,
        features: int,
        skip_channels: Sequence[int],
        terms: int,
        norm_axis: str,
    ) -> None:
        super().__init__()
        edges = ring_edges(structures) if edges is None else edges
        coarse, narrow = sum(coarse_sizes(structures)), features // 2
        for name, matrix in (
            ("laplacian", scaled_laplacian(sum(structures), edges)),
            ("coarse_laplacian", scaled_laplacian(coarse, coarse_edges(structures, edges))),
            ("unpool", unpooling(structures)),
        ):
            self.register_buffer(name, matrix, persistent=False)
        self.shape = (coarse, narrow)
        self.linear = nn.Linear(latent, coarse * narrow)
        nn.init.normal_(self.linear.weight, 0, 0.1)
        pairs = zip(skip_channels, (narrow, features), strict=False)
        skips = [ImageToGraph(skip_channels=c, decoder_channels=f) for c, f in pairs]
        self.skips = nn.ModuleList(skips)
        inputs = [narrow, narrow, narrow, features, features]
        for place, skip in zip((2, 4), skips, strict=False):
            inputs[place] = skip.out_channels
        outputs = [narrow, narrow, features, features, features]
        self.convs = nn.ModuleList(ChebConv(a, b, terms=terms) for a, b in zip(inputs, outputs, strict=True))
        self.norm = NodeNorm(norm_axis)
        self.position = ChebConv(features, 2, terms=1, bias=False)

    def forward(self, latent: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """latent (B, latent), a feature map per skip -> points (B, N, 2), and where each skip looked."""
        positions = []
        x = functional.relu(self.linear(latent)).view(-1, *self.shape)
        for number, conv in enumerate(self.convs):
            if number == 3:
                x = self.unpool @ x
            if number in (2, 4) and number // 2 <= len(self.skips):
                x = self.skips[number // 2 - 1](maps[number // 2 - 1], x)
                positions.append(x[..., -2:])
            laplacian = self.coarse_laplacian if number < 3 else self.laplacian
            x = functional.relu(self.norm(conv(x, laplacian)))
        return self.position(x, self.laplacian), tuple(positions)


def _checked_size(image_size: int | Sequence[int], spatial_dims: int) -> tuple[int, int]:
    if spatial_dims != 2:
        raise UsageError(f"hybridgnet is 2D (spatial_dims is {spatial_dims})")
    size = [image_size] * 2 if isinstance(image_size, int) else [int(n) for n in image_size]
    if len(size) != 2 or any(n < 32 or n % 32 for n in size):
        raise UsageError(f"image_size is {size} (needs rows and columns, multiples of 32)", fix="set plan.patch_size")
    return size[0], size[1]
