"""The published contracts: what every model and target must do, registered here or by another distribution.

    from medseg.testing import check_model
    check_model(create_model("mine", spatial_dims=2, in_channels=1, out_channels=3), spatial_dims=2, in_channels=1)

Each function raises AssertionError and says which promise is broken.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from medseg.blocks.norm import CHANNELS_LAST
from medseg.blocks.skip import EDITS, MERGES, PYRAMID, SkipSettings
from medseg.blocks.skip.path import SkipPath, skip_conditions
from medseg.models import MODELS
from medseg.models.table import describe
from medseg.targets import Target, build_target

# The smallest width and depth that still has every part, by the names that constructors give them.
TINY: dict[str, Any] = {
    "base_channels": 4,
    "blocks_per_stage": 1,
    "decoder_channels": (8, 8, 4, 4),
    "deep_supervision": True,
    "depth": 2,
    "depths": (2, 2, 2),
    "drop_path": 0.0,
    "embed_dim": 8,
    "image_size": 32,
    "num_heads": 2,
    "reductions": (4, 2, 1),
    "structures": (6, 5),
    "widths": (8, 16, 16),
    "window_size": 4,
}


def model_cases() -> list[tuple[str, int]]:
    """(name, spatial_dims) of every registered model in every dimension that it takes: what a contract test sweeps."""
    return [(name, dims) for name in MODELS.names() for dims in describe(name).spatial_dims]


def host_cases() -> list[tuple[str, int]]:
    """Those of `model_cases` that host skip paths, which a model says by taking the argument `skips`."""
    return [(name, dims) for name, dims in model_cases() if "skips" in MODELS.arguments(name)]


def skip_cases() -> list[tuple[str, str]]:
    """(role, name) of every registered skip part that works on images."""
    merges = [name for name in MERGES.names() if not getattr(MERGES.get(name), "takes_graph", False)]
    parts = {"pyramid": PYRAMID.names(), "edit": EDITS.names(), "merge": merges}
    return [(role, name) for role, names in parts.items() for name in names]


def tiny_arguments(name: str, spatial_dims: int) -> dict[str, Any]:
    """Arguments of a registered model for two image channels and three classes, as narrow as `TINY` makes it.

    Only those that the model takes; anisotropic `strides` instead of `depth` where it takes both.
    """
    known = MODELS.arguments(name)
    wanted = {**TINY, "spatial_dims": spatial_dims, "in_channels": 2, "out_channels": 3}
    if "strides" in known:
        wanted = {**wanted, "strides": [1, 2, (2, 1, 2)[:spatial_dims]]}
        del wanted["depth"]
    return {key: value for key, value in wanted.items() if key in known}


def image_of(model: nn.Module, channels: int, *, batch: int = 2, divisors: int = 2) -> Tensor:
    """A random image (B, C, *S) that a model takes: some divisors along every axis, or its only size.

    A model whose attribute ``output`` is ``"points"`` sees images as a whole, of the size that its divisor says.
    """
    divisor: tuple[int, ...] = tuple(cast(Any, model).divisor)
    return torch.randn(batch, channels, *((1 if gives_points(model) else divisors) * d for d in divisor))


def gives_points(model: nn.Module) -> bool:
    """Whether a model's output is points (B, N, 2) instead of logits on the image's grid."""
    return getattr(model, "output", "logits") == "points"


def check_model(model: nn.Module, *, spatial_dims: int, in_channels: int = 1, out_channels: int = 2) -> None:
    """Check the model contract; a few seconds for a narrow model. The model itself is left unchanged.

    Args:
        model: built for `spatial_dims`, `in_channels` and `out_channels`; one that gives points says so in its
            attribute ``output``, and its training output may be any nest of tensors, the points first.
        spatial_dims: 2 or 3.
        in_channels: image channels that it takes.
        out_channels: logits per voxel that it returns.
    """
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    divisor: tuple[int, ...] = tuple(cast(Any, model).divisor)
    assert len(divisor) == spatial_dims, f"divisor {divisor} does not have {spatial_dims} axes"
    _perturb(model, generator)
    only = gives_points(model)
    image = torch.randn((2, in_channels, *((1 if only else 2) * d for d in divisor)), generator=generator)
    check_training_step(model, image, out_channels)
    for size in (divisor,) if only else (divisor, tuple(2 * d + 1 for d in divisor)):
        padded = pad_to_divisor(torch.randn((2, in_channels, *size), generator=generator), divisor)
        check_inference(model, padded, out_channels)
    check_state_round_trip(model, image)


def check_training_step(model: nn.Module, image: Tensor, out_channels: int) -> None:
    """Forward and backward in training mode are finite, heads have the right shapes, every parameter gets a gradient.

    Args:
        model: put into training mode, its gradients are overwritten.
        image: (B, C, *S), S a multiple of the divisor.
        out_channels: expected logits per voxel.
    """
    model.train().zero_grad()
    output = model(image)
    heads = tree_leaves(output)
    _check_logits(model, heads[0], image, out_channels)
    for head in [] if gives_points(model) else heads:
        assert head.shape[:2] == (len(image), out_channels), f"a head has shape {tuple(head.shape)}"
        assert all(h <= s for h, s in zip(head.shape[2:], image.shape[2:], strict=True)), (
            "a head is larger than the image"
        )
    torch.stack([head.square().mean() for head in heads]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"parameter {name} gets no gradient"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert parameter.grad.any(), f"the gradient of {name} is all zero"


def check_inference(model: nn.Module, image: Tensor, out_channels: int) -> None:
    """Evaluation returns one finite tensor of the image's size, repeatably, and a sample's logits depend on no other.

    Args:
        model: put into evaluation mode.
        image: (B, C, *S), B >= 2, S a multiple of the divisor.
        out_channels: expected logits per voxel.
    """
    model.eval()
    with torch.no_grad():
        logits = model(image)
        _check_logits(model, logits, image, out_channels)
        assert torch.equal(logits, model(image)), "evaluation is not deterministic"
        reversed_logits = model(image.flip(0)).flip(0)
    assert torch.allclose(logits, reversed_logits, rtol=1e-4, atol=1e-5), "logits depend on the order of the batch"


def check_state_round_trip(model: nn.Module, image: Tensor) -> None:
    """A copy with other weights that loads the saved state (safetensors) gives the same logits bit for bit.

    Args:
        model: put into evaluation mode.
        image: (B, C, *S), S a multiple of the divisor.
    """
    other = copy.deepcopy(model.eval())
    _perturb(other, torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
        other.load_state_dict(load_file(path))
    with torch.no_grad():
        assert torch.equal(model(image), other.eval()(image)), "the state dict does not hold all of the model's state"


class PathAlone(nn.Module):
    """A skip path between random features: image (B, C, *S) -> the joined features, flat, (B, N)."""

    def __init__(self, settings: SkipSettings, spatial_dims: int, channels: Sequence[int] = (4, 6, 8)) -> None:
        super().__init__()
        self.skips = SkipPath(settings, spatial_dims=spatial_dims, channels=channels, decoder_channels=channels[:-1])

    def features(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Skips and decoder features at the image's size and two odd smaller ones, made of the image alone.

        In training they lie channels-last, as medseg's trainings have them.
        """
        sizes = [[-(-s // 2**level) for s in image.shape[2:]] for level in range(len(self.skips.channels))]
        maps = [nn.functional.interpolate(image, size=size, mode="nearest") for size in sizes]
        parts = [torch.cat([x.roll(i, -1).sin() * (i + 1) for i in range(8)], 1) for x in maps]
        skips = [x[:, :c].contiguous() for x, c in zip(parts, self.skips.channels, strict=True)]
        if self.training:
            skips = [x.contiguous(memory_format=CHANNELS_LAST[x.ndim]) for x in skips]
        return skips, [skip.flip(-1) for skip in skips[:-1]]

    def forward(self, image: Tensor) -> Tensor:
        """All joined features and the bottleneck."""
        features, decoder = self.features(image)
        features = self.skips(features)
        joined = [self.skips.join(i, features[i], x) for i, x in enumerate(decoder)]
        return torch.cat([x.flatten(1) for x in (*joined, features[-1])], dim=1)


def check_skip(role: str, setting: Any, *, spatial_dims: int) -> None:
    """Check the contract of a skip part, on features of three levels with odd sizes.

    Shapes are kept, channels are those promised; a part that says so is neutral at first, bit for bit; gradients are
    finite and reach every parameter; evaluation is repeatable and depends on no other sample; the state holds
    everything.

    Args:
        role: ``"pyramid"``, ``"edit"`` or ``"merge"``.
        setting: name of the part, or a mapping with ``name`` and arguments.
        spatial_dims: 2 or 3.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # narrow parts are dead with some initial weights
        torch.manual_seed(0)
        alone = PathAlone({role: setting}, spatial_dims)
    image = torch.randn((2, 1, *(9, 7, 5)[:spatial_dims]), generator=generator)
    conditions = {
        name: torch.randn((2, n, *image.shape[2:]), generator=generator) for name, n in alone.skips.needs.items()
    }
    features, decoder = alone.features(image)
    with skip_conditions(alone, **conditions):
        _check_shapes(alone.skips.eval(), features, decoder)
        if any(getattr(part, "neutral_at_init", False) for part in alone.skips.modules()):
            assert torch.equal(alone(image), PathAlone(None, spatial_dims)(image)), (
                "the untrained part changes features"
            )
        _perturb(alone, generator)
        alone.train()(image.clone().requires_grad_()).square().mean().backward()
        for name, parameter in alone.named_parameters():
            assert parameter.grad is not None, f"parameter {name} gets no gradient"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
            assert parameter.grad.any(), f"the gradient of {name} is all zero"
        check_state_round_trip(alone, image)
        with torch.no_grad():
            assert torch.equal(alone(image), alone(image)), "evaluation is not deterministic"
            whole = alone(image)
    with skip_conditions(alone, **{name: tensor[1:] for name, tensor in conditions.items()}), torch.no_grad():
        assert torch.allclose(alone(image[1:]), whole[1:], rtol=1e-4, atol=1e-5), "a sample depends on another"


def _check_shapes(path: SkipPath, features: Sequence[Tensor], decoder: Sequence[Tensor]) -> None:
    changed = path(features)
    assert [x.shape for x in changed] == [x.shape for x in features], "features change their shape"
    for level, x in enumerate(decoder):
        expected = (len(x), path.out_channels[str(level)], *x.shape[2:])
        assert path.join(level, changed[level], x).shape == expected, f"level {level} is not joined to shape {expected}"


def check_target(target: Target, label: Tensor) -> None:
    """Check the target contract.

    Args:
        target: to be checked.
        label: (B, 1, *S) label values that the target knows, S at least 4 along every axis, no voxel ignored; for a
            target whose ``supervision`` is ``"points"``, those, (B, N, 2).
    """
    encoded = target.encode(label)
    size = label.shape[2:] if target.dense else (8, 8)
    logits = torch.randn((len(label), *target.output_shape(size)), requires_grad=True)
    loss = target.loss(logits, encoded)
    assert loss.shape == (), f"the loss has shape {tuple(loss.shape)}, not a scalar's"
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all(), "the gradient of the loss is not finite"
    assert gradient.any(), "the loss has no gradient"
    if target.dense:
        _check_heads(target, logits, encoded)
        _check_probabilities(target, logits.detach(), label)
    else:
        _check_points(target, logits.detach(), size)
    description = json.loads(json.dumps(target.to_dict()))
    rebuilt = build_target(description)
    assert rebuilt.to_dict() == target.to_dict(), "to_dict does not survive build_target"
    assert torch.equal(rebuilt.loss(logits, rebuilt.encode(label)), loss), "the rebuilt target has another loss"


def _check_heads(target: Target, logits: Tensor, encoded: Tensor) -> None:
    halved = nn.functional.avg_pool2d(logits, 2) if logits.ndim == 4 else nn.functional.avg_pool3d(logits, 2)
    assert target.loss([logits, halved], encoded).isfinite(), "the loss of two heads is not finite"


def _check_points(target: Target, points: Tensor, size: Sequence[int]) -> None:
    found = target.activate(points)
    assert found.shape == points.shape, "activate changes the shape"
    assert target.activate(points.bfloat16()).dtype == torch.float32, "points of bfloat16 outputs are not float32"
    decoded = target.decode(found, size)
    assert decoded.shape == (len(points), *size), f"decode returns shape {tuple(decoded.shape)}"
    assert not decoded.is_floating_point(), "decode returns no integers"


def pad_to_divisor(image: Tensor, divisor: Sequence[int]) -> Tensor:
    """Zero-pad (B, C, *S) at the end of each axis to the next multiple of `divisor`."""
    missing = [-s % d for s, d in zip(image.shape[2:], divisor, strict=True)]
    return nn.functional.pad(image, [side for m in reversed(missing) for side in (0, m)])


def _check_logits(model: nn.Module, logits: Tensor, image: Tensor, out_channels: int) -> None:
    expected: tuple[int, ...] = (len(image), out_channels, *image.shape[2:])
    assert isinstance(logits, Tensor), f"expected one tensor of logits, not {type(logits).__name__}"
    if gives_points(model):
        expected = (len(image), logits.shape[1], 2)
    assert tuple(logits.shape) == expected, f"logits have shape {tuple(logits.shape)}, not {expected}"
    assert logits.isfinite().all(), "logits are not finite"


def _check_probabilities(target: Target, logits: Tensor, label: Tensor) -> None:
    probabilities = target.activate(logits)
    expected = (len(label), target.probability_channels, *label.shape[2:])
    assert probabilities.shape == expected, f"probabilities have shape {tuple(probabilities.shape)}, not {expected}"
    assert 0 <= probabilities.min() <= probabilities.max() <= 1, "probabilities leave 0..1"
    assert target.activate(logits.bfloat16()).dtype == torch.float32, "probabilities of bfloat16 logits are not float32"
    decoded = target.decode(probabilities)
    assert decoded.shape == (len(label), *label.shape[2:]), f"decode returns shape {tuple(decoded.shape)}"
    assert not decoded.is_floating_point(), "decode returns no integers"
    nothing = target.decode(torch.zeros_like(probabilities))
    assert not nothing.any(), "where every probability is 0, decode does not return the background"
    entropy = target.entropy(probabilities)
    assert entropy.shape == decoded.shape, f"entropy returns shape {tuple(entropy.shape)}"
    assert 0 <= entropy.min() <= entropy.max() <= 1 + 1e-6, "entropy leaves 0..1"
    assert target.swapped([]) == list(range(target.out_channels)), "without a swap, channels change places"


def _perturb(model: nn.Module, generator: torch.Generator) -> None:
    """Leave special initial values (zeros, ones) behind, which would hide a dead or an unsaved parameter."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.1)  # positive: running variances stay so
