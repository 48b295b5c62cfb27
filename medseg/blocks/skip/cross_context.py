"""Cross-contextual skip of Att-SwinU-Net: each side's mean token looks at the other side's tokens.

Paper: Aghdam et al., "Attention Swin U-Net: Cross-Contextual Attention Mechanism for Skin Lesion Segmentation", ISBI
2023 (arXiv 2210.16898); the layers were read in its code (snapshot 4b14f37).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.blocks.skip import MERGES, SkipContext, SkipMerge
from medseg.blocks.skip.checks import check_counts
from medseg.errors import UsageError, nearest

CLS_MODES = ("add", "replace_first")


@MERGES.register("cross_context")
class CrossContext(SkipMerge):
    """Concatenation, decoder first, after each side has learnt of the other through its class token.

    Source: Aghdam et al. 2023, arXiv 2210.16898

    The class token starts as the mean of its side's tokens. Per layer it attends to itself and to the other side's
    tokens, and the result is added to it.

    Args:
        spatial_dims: 2 or 3.
        skip_channels: channels of the skip, equal to `decoder_channels`.
        decoder_channels: channels of the decoder.
        layers: rounds of the exchange.
        num_heads: heads of the attention.
        head_dim: channels of a head.
        cls_mode: ``"add"``, our reading of the figure's summation: an extra class token, added to every token at the
            end. ``"replace_first"``, the published code: the class token takes the place of the first token, which
            is lost, and the others stay as they are.

    Raises:
        UsageError: for unequal channels or an unknown `cls_mode`.
        ValueError: `layers`, `num_heads` or `head_dim` is not at least 1.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        skip_channels: int,
        decoder_channels: int,
        layers: int = 2,
        num_heads: int = 8,
        head_dim: int = 64,
        cls_mode: str = "add",
    ) -> None:
        super().__init__()
        if skip_channels != decoder_channels:
            raise UsageError(f"skip 'cross_context' needs equal channels, not {skip_channels} and {decoder_channels}")
        if cls_mode not in CLS_MODES:
            raise UsageError(f"unknown cls_mode '{cls_mode}': {nearest(cls_mode, CLS_MODES)}")
        check_counts(layers=layers, num_heads=num_heads, head_dim=head_dim)
        self.out_channels, self.cls_mode = skip_channels + decoder_channels, cls_mode
        self.decoder_layers, self.skip_layers = (
            nn.ModuleList(TokenAttention(c, num_heads=num_heads, head_dim=head_dim) for _ in range(layers))
            for c in (decoder_channels, skip_channels)
        )

    def forward(self, skip: Tensor, decoder: Tensor, context: SkipContext | None = None) -> Tensor:
        """skip (B, C, *S), decoder (B, C, *S) -> (B, 2C, *S)."""
        size = decoder.shape[2:]
        sides = [image.flatten(2).transpose(1, 2) for image in (decoder, skip)]
        cls = [tokens.mean(1, keepdim=True) for tokens in sides]
        lost = 1 if self.cls_mode == "replace_first" else 0
        for layers in zip(self.decoder_layers, self.skip_layers, strict=True):
            for side, layer in enumerate(layers):
                cls[side] = cls[side] + layer(cls[side], sides[1 - side][:, lost:])
        if lost:
            sides = [torch.cat((c.to(t.dtype), t[:, 1:]), 1) for c, t in zip(cls, sides, strict=True)]
            return torch.cat(sides, 2).transpose(1, 2).unflatten(2, size)
        return torch.cat(sides, 2).add_(torch.cat(cls, 2)).transpose(1, 2).unflatten(2, size)


class TokenAttention(nn.Module):
    """Attention of one token to itself, normalised, and to other tokens as they are.

    With a single query the two large projections need not be computed: q · (W x) = (Wᵀ q) · x, and
    Σ a W x = W (Σ a x). The weights stay those of keys and values.

    Args:
        channels: of a token.
        num_heads: heads.
        head_dim: channels of a head.
    """

    def __init__(self, channels: int, *, num_heads: int, head_dim: int) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads, self.head_dim = num_heads, head_dim
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_kv = nn.Linear(channels, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels)

    def forward(self, cls: Tensor, tokens: Tensor) -> Tensor:
        """cls (B, 1, C), tokens (B, N, C) -> (B, 1, C)."""
        own = self.norm(cls)
        keys, values = self.to_kv.weight.unflatten(0, (2, self.num_heads, self.head_dim)).unbind(0)
        q = self.to_q(own).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, heads, 1, d)
        q = (q * self.head_dim**-0.5 @ keys).squeeze(2)  # (B, heads, C)
        scores = torch.cat((q @ own.transpose(1, 2), q @ tokens.transpose(1, 2)), 2).softmax(2)
        seen = scores[:, :, :1] * own + scores[:, :, 1:].to(tokens.dtype) @ tokens  # (B, heads, C)
        out = values @ seen.to(values.dtype).unsqueeze(3)  # (B, heads, d, 1)
        return self.to_out(out.flatten(1).unsqueeze(1))
