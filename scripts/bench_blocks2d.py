"""Forward, training step and peak memory of 2D networks at 224x224, against their naive formulation, in one run.

    python scripts/bench_blocks2d.py [att_swin_unet barlow_swin ...] [--rounds 3] [--threads 2] [--ways fp32]
        [--output FILE.md]

Ways: medseg in fp32 and in bf16 autocast, channels-last, and the naive formulation in contiguous fp32: windows by
roll, padding and reshaping, attention as explicit products and softmax, keys and values of cross-contextual attention
for every token, 1x1 convolutions as such; other networks differ in the memory format only. Each way lives in a
process of its own, whose peak memory is ru_maxrss; the processes take turns, step by step, so that a busy machine slows
all of them alike. Times are the least of the rounds; CPU time, summed over threads, suffers least from other programs.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.blocks.attention.efficient import EfficientAttention
from medseg.blocks.attention.patch import PatchExpand
from medseg.blocks.attention.spatial_reduction import SpatialReductionAttention
from medseg.blocks.attention.window import WindowAttention
from medseg.blocks.skip.cross_context import TokenAttention
from medseg.models import MODELS, create_model
from medseg.models.barlow_swin import DecoderBlock, Pointwise

BATCH, SIZE = 4, 224
WAYS = ("naive fp32", "fp32", "bf16")


def naive_map(layer: WindowAttention, x: Tensor, guide: Tensor | None) -> tuple[Tensor, Tensor]:
    """(S)W-MSA as published code writes it: roll, partition, products, bias, mask, softmax, product, reverse, roll."""
    window, heads = layer.window_size, layer.num_heads
    batch, height, width, channels = x.shape
    x = functional.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    shape = x.shape[1:3]
    shifts = tuple(layer.shift if length > window else 0 for length in (height, width))
    x = x.roll([-s for s in shifts], (1, 2)) if any(shifts) else x
    x = x.view(batch, shape[0] // window, window, shape[1] // window, window, channels).transpose(2, 3)
    qkv = layer.qkv(x.contiguous().view(-1, window**2, channels))
    q, k, v = qkv.view(-1, window**2, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    bias = layer.relative_position_bias_table[layer.relative_position_index.flatten()]
    scores = scores + bias.view(window**2, window**2, heads).permute(2, 0, 1)[None]
    mask = layer._windows(torch.empty(1, height, width, 1)).mask
    if mask is not None:
        scores = scores.view(batch, -1, heads, *scores.shape[2:]) + mask[None, :, None]
    weights = scores.view(-1, *scores.shape[-3:]).softmax(-1)
    out = ((weights if guide is None else weights + guide) @ v).transpose(1, 2).reshape(-1, window**2, channels)
    out = layer.proj(out).view(batch, shape[0] // window, shape[1] // window, window, window, channels).transpose(2, 3)
    out = out.reshape(batch, *shape, channels)
    out = out.roll(shifts, (1, 2)) if any(shifts) else out
    return out[:, :height, :width].contiguous(), weights


def naive_forward(layer: WindowAttention, x: Tensor, guide: Tensor | None = None, **_: object) -> Tensor:
    """`WindowAttention.forward` with operation "add"."""
    return naive_map(layer, x, guide)[0]


def naive_with_map(layer: WindowAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """`WindowAttention.with_map`."""
    return naive_map(layer, x, None)


def naive_tokens(layer: TokenAttention, cls: Tensor, tokens: Tensor) -> Tensor:
    """`TokenAttention.forward` with the keys and values of every token."""
    own = layer.norm(cls)
    keys, values = layer.to_kv(torch.cat((own, tokens), 1)).chunk(2, 2)
    q, k, v = (t.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for t in (layer.to_q(own), keys, values))
    weights = (q @ k.transpose(-2, -1) * layer.head_dim**-0.5).softmax(-1)
    return layer.to_out((weights @ v).transpose(1, 2).flatten(2))


def naive_groups(layer: PatchExpand, x: Tensor) -> Tensor:
    """`PatchExpand.groups` that moves the tokens to their places and normalises them there."""
    f = layer.sides[0]
    x = layer.expand(x).unflatten(3, (f, f, -1)).transpose(2, 3).contiguous()
    return layer.norm(x).transpose(2, 3)


def naive_reduction(layer: SpatialReductionAttention, image: Tensor) -> Tensor:
    """`SpatialReductionAttention.forward` with the whole matrix of weights."""
    tokens, reduced = (x.flatten(2).transpose(1, 2).contiguous() for x in (image, layer.reduce(image)))
    query = layer.query(tokens).unflatten(2, (layer.heads, -1)).transpose(1, 2)
    key, value = (
        part.unflatten(2, (layer.heads, -1)).transpose(1, 2) for part in layer.key_value(reduced).chunk(2, dim=2)
    )
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
    out = layer.project((weights @ value).transpose(1, 2).flatten(2))
    return out.transpose(1, 2).unflatten(2, image.shape[2:]).contiguous()


def naive_efficient(layer: EfficientAttention, image: Tensor) -> Tensor:
    """`EfficientAttention.forward` as published code writes it: 1x1 convolutions of channels-first images."""
    weights, biases = layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)
    query, key, value = (
        functional.conv2d(image, w[:, :, None, None], b).flatten(2) for w, b in zip(weights, biases, strict=True)
    )
    context = key.softmax(2) @ value.transpose(1, 2)
    attended = (context.transpose(1, 2) @ query.softmax(1)).unflatten(2, image.shape[2:])
    return functional.conv2d(attended, layer.project.weight[:, :, None, None], layer.project.bias)


def naive_pointwise(layer: Pointwise, x: Tensor) -> Tensor:
    """`Pointwise.forward` as a convolution."""
    return functional.conv2d(x, layer.weight[:, :, None, None], layer.bias)


def naive_block(block: DecoderBlock, x: Tensor, join: Callable[[Tensor], Tensor] | None) -> Tensor:
    """`DecoderBlock.forward` with everything at the higher resolution."""
    x = functional.interpolate(x, scale_factor=2.0)
    x = x if join is None else join(x)
    return block.main(x) + block.shortcut(x)


NAIVE: dict[type, dict[str, Callable]] = {
    WindowAttention: {"forward": naive_forward, "with_map": naive_with_map},
    TokenAttention: {"forward": naive_tokens},
    PatchExpand: {"groups": naive_groups},
    SpatialReductionAttention: {"forward": naive_reduction},
    EfficientAttention: {"forward": naive_efficient},
    Pointwise: {"forward": naive_pointwise},
    DecoderBlock: {"forward": naive_block},
}


def naive() -> ExitStack:
    """The context in which networks are naive."""
    stack = ExitStack()
    for kind, methods in NAIVE.items():
        for name, method in methods.items():
            stack.enter_context(mock.patch.object(kind, name, method))
    return stack


def build(model: str) -> nn.Module:
    """The network for three channels and one class; those for volumes too are narrow, as on a CPU."""
    facts = {"spatial_dims": 2, "in_channels": 3, "out_channels": 1, "image_size": SIZE, "base_channels": 32}
    torch.manual_seed(0)
    return create_model(model, **{key: value for key, value in facts.items() if key in MODELS.arguments(model)})


def difference(model: str) -> float:
    """Largest difference of the naive network's logits, as a share of the largest logit."""
    network, image = build(model).eval(), torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = network(image)
        with naive():
            return float((network(image) - expected).abs().max() / expected.abs().max())


def serve(model: str, way: str, threads: int, pipe: Connection) -> None:
    """A process: on "forward" or "step" do one, on "stop" tell the peak memory in bytes and end."""
    torch.set_num_threads(threads)
    layout = torch.contiguous_format if way == "naive fp32" else torch.channels_last
    network, image = build(model).to(memory_format=layout), torch.randn(BATCH, 3, SIZE, SIZE)
    image, truth = image.to(memory_format=layout), torch.rand(BATCH, 1, SIZE, SIZE).round()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with naive() if way == "naive fp32" else nullcontext():
        while (word := pipe.recv()) != "stop":
            start, cpu = time.perf_counter(), time.process_time()
            run(network.train(word == "step"), image, truth, way)
            pipe.send((time.perf_counter() - start, time.process_time() - cpu))
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def run(network: nn.Module, image: Tensor, truth: Tensor, way: str) -> None:
    """One forward pass, or in training one step without the optimiser, which is the same for all ways."""
    with torch.autocast("cpu", torch.bfloat16) if way == "bf16" else nullcontext():
        if not network.training:
            with torch.inference_mode():
                network(image)
            return
        logits = network(image)
    network.zero_grad()
    first = logits[0] if isinstance(logits, list) else logits
    functional.binary_cross_entropy_with_logits(first.float(), truth).backward()


@dataclass
class Row:
    """One way of one network: seconds of wall clock and CPU, bytes above the built network."""

    model: str
    way: str
    wall: dict[str, float]
    cpu: dict[str, float]
    peak: dict[str, int]


def measure(model: str, ways: Sequence[str], rounds: int, threads: int) -> list[Row]:
    """The ways of one network, taking turns: first all forward passes, then, in new processes, all steps."""
    rows = [Row(model, way, {}, {}, {}) for way in ways]
    for word in ("forward", "step"):
        context, pipes, processes = get_context("spawn"), [], []
        for way in ways:
            ours, theirs = context.Pipe()
            pipes.append(ours)
            processes.append(context.Process(target=serve, args=(model, way, threads, theirs), daemon=True))
            processes[-1].start()
        times: list[list[tuple[float, float]]] = [[] for _ in ways]
        for _ in range(rounds + 1):  # the first is the warm-up
            for pipe, found in zip(pipes, times, strict=True):
                pipe.send(word)
                found.append(pipe.recv())
        for row, pipe, found, process in zip(rows, pipes, times, processes, strict=True):
            row.wall[word], row.cpu[word] = (min(column) for column in zip(*found[1:], strict=True))
            pipe.send("stop")
            row.peak[word] = pipe.recv()
            process.join()
    return rows


def table(rows: list[Row]) -> str:
    """Markdown; ratios are those of the naive way to each way."""
    lines = [
        "| model | way | forward s (CPU s) | times as fast (CPU) | step s (CPU s) | times as fast (CPU) "
        "| peak forward MB | peak step MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        base = next(other for other in rows if other.model == row.model and other.way == WAYS[0])
        cells = [row.model, row.way]
        for word in ("forward", "step"):
            wall, cpu = row.wall[word], row.cpu[word]
            cells += [f"{wall:.2f} ({cpu:.2f})", f"{base.wall[word] / wall:.2f} ({base.cpu[word] / cpu:.2f})"]
        cells += [f"{row.peak[word] / 1e6:.0f}" for word in ("forward", "step")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=["att_swin_unet", "barlow_swin", "transdae"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    told = "beside the naive one; without bf16 instructions PyTorch imitates it, in minutes a step"
    parser.add_argument("--ways", nargs="*", default=list(WAYS[1:]), choices=WAYS[1:], help=told)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    for model in options.models:
        print(f"{model}: naive and medseg's logits differ by {difference(model):.1e} of the largest", flush=True)
        rows += measure(model, (WAYS[0], *options.ways), options.rounds, options.threads)
    text = table(rows)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
