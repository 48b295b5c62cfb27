"""The Swin block: window attention and a two-layer perceptron, each behind a normalisation and beside a shortcut."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from medseg.blocks.attention.window import WindowAttention


class SwinBlock(nn.Module):
    """x + W-MSA(LN(x)), then x + MLP(LN(x)) (Liu et al. 2021, arXiv 2103.14030, equation 3); parameters as timm's.

    Args:
        channels: of a token.
        num_heads: heads.
        window_size: side of a window in tokens.
        shift: of the windows, in tokens; Swin alternates 0 and window_size // 2.
        mlp_ratio: hidden width of the perceptron over `channels`.
        qkv_bias: biases of queries, keys and values.
        drop_path: probability that training skips a sample's attention, and its perceptron (Huang et al. 2016).
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        window_size: int = 7,
        shift: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(
            channels, num_heads=num_heads, window_size=window_size, shift=shift, qkv_bias=qkv_bias
        )
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.drop_path = make_drop_path(drop_path)

    def forward(
        self, x: Tensor, guide: Tensor | None = None, *, operation: str = "add", renormalise: bool = False
    ) -> Tensor:
        """Tokens (B, H, W, C) -> the same shape; further arguments as of `WindowAttention.forward`."""
        return self._rest(x, self.attn(self.norm1(x), guide, operation=operation, renormalise=renormalise))

    def with_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the attention, see `WindowAttention.with_map`."""
        attended, weights = self.attn.with_map(self.norm1(x))
        return self._rest(x, attended), weights

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Mlp(nn.Module):
    """Linear, GELU, linear over the last axis; parameters as timm's."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., channels)."""
        return self.fc2(functional.gelu(self.fc1(x)))


def make_drop_path(probability: float) -> nn.Module:
    """Stochastic depth per sample; an identity for probability 0."""
    if not probability:
        return nn.Identity()
    from timm.layers.drop import DropPath  # an import of seconds

    return DropPath(probability)


def initialise_tokens(model: nn.Module) -> None:
    """Swin's initialisation: truncated normal weights of deviation 0.02 and zero biases in every linear layer."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
