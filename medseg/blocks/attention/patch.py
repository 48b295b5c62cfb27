"""From image to tokens, and between resolutions of tokens (B, H, W, C).

Papers: Liu et al. 2021 (Swin, arXiv 2103.14030) for embedding and merging; Cao et al. 2022 (Swin-Unet, arXiv
2105.05537) for expanding.
"""

from __future__ import annotations

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """One token per patch of `patch_size` x `patch_size` pixels; parameters as timm's.

    Args:
        in_channels: of the image.
        channels: of a token.
        patch_size: side of a patch in pixels.
        norm: layer normalisation of the tokens.
    """

    def __init__(self, in_channels: int, channels: int, *, patch_size: int = 4, norm: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch_size, patch_size)
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """image (B, in_channels, H, W) -> (B, H / patch_size, W / patch_size, channels)."""
        return self.norm(self.proj(image).permute(0, 2, 3, 1).contiguous())


class PatchMerging(nn.Module):
    """Half the resolution and twice the channels: 2 x 2 neighbours side by side, then a linear layer.

    Args:
        channels: of a token.
        norm: layer normalisation of the 4 * channels, as in Swin; Barlow-Swin has none.
    """

    def __init__(self, channels: int, *, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels) if norm else nn.Identity()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), H and W even -> (B, H / 2, W / 2, 2C)."""
        x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class PatchExpand(nn.Module):
    """`factor` times the resolution: a linear layer whose outputs become factor^d tokens, then a normalisation.

    Args:
        channels: of a token.
        out_channels: of a new token; Swin-Unet halves `channels` with factor 2 and keeps them with factor 4.
        factor: new tokens per side.
        spatial_dims: d.
    """

    def __init__(self, channels: int, out_channels: int, *, factor: int = 2, spatial_dims: int = 2) -> None:
        super().__init__()
        self.sides = (factor,) * spatial_dims
        self.expand = nn.Linear(channels, factor**spatial_dims * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *S, channels) -> (B, *(factor * S), out_channels)."""
        return shuffle(self.groups(x))

    def groups(self, x: Tensor) -> Tensor:
        """The new tokens before they take their places: (B, *S, *sides, out_channels)."""
        return self.norm(self.expand(x).unflatten(-1, (*self.sides, -1)))


class ImageExpand(PatchExpand):
    """`PatchExpand` of channels-first images, as a view of tokens."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, *S) -> (B, out_channels, *(factor * S)), channels-last."""
        return super().forward(image.movedim(1, -1)).movedim(-1, 1)


def shuffle(x: Tensor) -> Tensor:
    """Groups of d-dimensional tokens to their places: (B, *S, *sides, C) -> (B, *(S * sides), C)."""
    dims = (x.ndim - 2) // 2
    places = [place for axis in range(1, dims + 1) for place in (axis, axis + dims)]
    x = x.permute(0, *places, -1)  # (B, S1, side1, S2, side2, ..., C)
    for axis in reversed(range(dims)):
        x = x.flatten(2 * axis + 1, 2 * axis + 2)
    return x
