"""ImageNet weights of timm's Swin Transformer for an encoder whose parameters have timm's names."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor, nn

from medseg.errors import UsageError, some
from medseg.io.weights import download_timm_weights, read_weights

logger = logging.getLogger(__name__)
TIMM_NAME = "swin_tiny_patch4_window7_224"
STEM, TABLE = "patch_embed.proj.weight", "relative_position_bias_table"
BUFFERS = re.compile(r"(relative_position_index|attn_mask)$")


class Loaded(NamedTuple):
    """What became of a weight file: names of the encoder's tensors, and of the file's that were not used."""

    loaded: list[str]
    adapted: list[str]
    unused: list[str]

    def __str__(self) -> str:
        adapted = f", of them adapted in shape: {some(self.adapted)}" if self.adapted else ""
        unused = f"; not used from the file: {some(self.unused)}" if self.unused else ""
        return f"{len(self.loaded)} tensors loaded, all of the encoder's{adapted}{unused}"


def load_swin_weights(encoder: nn.Module, source: str | Path | Literal[True]) -> Loaded:
    """Fill every parameter of the encoder, or none.

    The file may hold more: the classifier, and deeper blocks of a stage than the encoder has (Swin-T has six in its
    third stage). An input convolution for another number of channels, and bias tables of another window, are adapted
    as timm does it.

    Args:
        encoder: a Swin encoder, e.g. `AttSwinUNet.encoder`.
        source: a .safetensors or .pth file, or True to download timm's `swin_tiny_patch4_window7_224`.

    Returns:
        What was loaded, which is also logged.

    Raises:
        UsageError: naming what does not match; the encoder is left unchanged.
        UnreadableFile, UnsafeArtefact, ResourceError: as `medseg.io.weights`.
    """
    weights = download_timm_weights(TIMM_NAME) if source is True else _as_timm(read_weights(source))
    own = encoder.state_dict()
    fitting, adapted = {}, []
    for name, tensor in weights.items():
        if name in own and tensor.shape != own[name].shape:
            tensor = adapt(name, tensor, own[name])
            adapted.append(name)
        fitting[name] = tensor
    problems = mismatches(own, fitting)
    if problems:
        raise UsageError(
            f"pretrained={source} holds weights of another architecture: {some(problems)}",
            fix=f"give the weights of timm's {TIMM_NAME}, and embed_dim, num_heads and depths no larger than its own",
        )
    encoder.load_state_dict({name: fitting[name] for name in own})
    unused = [name for name in weights if name not in own and not BUFFERS.search(name)]
    report = Loaded(sorted(own), sorted(adapted), sorted(unused))
    logger.info("pretrained=%s: %s", source, report)
    return report


def _as_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in timm's names, whose mergings begin a stage; in Microsoft's files they end the stage before."""
    if not any(name.startswith("layers.0.downsample.") for name in weights):
        return dict(weights)
    following = lambda match: f"layers.{int(match[1]) + 1}.downsample."  # noqa: E731
    return {re.sub(r"^layers\.(\d+)\.downsample\.", following, name): tensor for name, tensor in weights.items()}


def mismatches(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Names that are missing or have another shape, and names of the file that no Swin Transformer has."""
    missing = [f"{name} is missing" for name in own if name not in weights]
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    known = re.compile(r"(patch_embed|layers\.\d+|norm|head)\.")
    foreign = [f"{name} is unknown" for name in weights if not known.match(name)]
    return missing + shapes + foreign


def adapt(name: str, tensor: Tensor, own: Tensor) -> Tensor:
    """timm's way to fit the input convolution to other channels and bias tables to other windows; else as it is."""
    if name == STEM and tensor.ndim == 4 and tensor.shape[0] == own.shape[0] and tensor.shape[2:] == own.shape[2:]:
        from timm.models import adapt_input_conv

        return adapt_input_conv(own.shape[1], tensor)
    if name.endswith(TABLE) and tensor.ndim == 2 and tensor.shape[1] == own.shape[1]:
        from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

        side = (round(own.shape[0] ** 0.5) + 1) // 2
        return resize_rel_pos_bias_table(tensor, new_window_size=(side, side), new_bias_shape=tuple(own.shape))
    return tensor
