"""Sliding windows: identity, coverage, equality with one whole-image call."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.inference.sliding_window import importance, pad_to, sliding_window, stream_planes, window_starts

pytestmark = pytest.mark.numerics


@given(st.integers(1, 70), st.integers(1, 24), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_windows_cover_the_axis_and_overlap_as_asked(size, patch, overlap):
    starts = window_starts(size, patch, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, size - patch)
    assert all(1 <= step <= max(1, int(patch * (1 - overlap))) for step in np.diff(starts))


@settings(deadline=None, max_examples=20)
@given(st.tuples(*[st.integers(1, 19)] * 3))
def test_an_identity_network_returns_the_image(shape):
    image = torch.randn(2, *shape)
    logits = sliding_window(nn.Identity(), image, (8, 6, 4))
    torch.testing.assert_close(logits, image)


def test_a_pointwise_network_equals_one_call_on_the_whole_image():
    network = nn.Conv2d(3, 5, 1)
    image = torch.randn(3, 37, 21)
    expected = network(image[None])[0]
    for overlap in (0.0, 0.5):
        torch.testing.assert_close(sliding_window(network, image, (16, 8), overlap=overlap), expected)


def test_agrees_with_monai():
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3, padding=1)
    image = torch.randn(1, 32, 32)  # windows of both fall on the same places
    ours = sliding_window(network, image, (16, 16), overlap=0.5)
    with torch.no_grad():
        theirs = sliding_window_inference(image[None], (16, 16), 1, network, 0.5, "gaussian", sigma_scale=0.125)
    torch.testing.assert_close(ours, theirs[0], atol=1e-5, rtol=1e-4)


def test_importance_is_largest_in_the_middle_and_never_zero():
    weight = importance((9, 17))
    assert weight.argmax() == 4 * 17 + 8
    assert weight.min() >= 1e-3
    assert weight.max() == 1


@pytest.mark.parametrize("shape", [(3, 4), (9, 4), (8, 8)])
def test_padding_is_undone(shape):
    image = torch.randn(1, *shape)
    padded, inside = pad_to(image, (8, 8))
    assert all(n >= 8 for n in padded.shape[1:])
    assert torch.equal(padded[(slice(None), *inside)], image)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(*[st.integers(3, 15)] * 3),
    axis=st.integers(0, 2),
    overlap=st.sampled_from([0.0, 0.3, 0.5, 0.75]),
    window_batch=st.integers(1, 4),
    most=st.sampled_from([None, 1, 3]),
)
def test_streamed_planes_are_those_of_the_whole_volume(shape, axis, overlap, window_batch, most):
    torch.manual_seed(0)
    network, image, patch = nn.Conv3d(1, 3, 3, padding=1), torch.randn(1, *shape), (5, 4, 6)
    planes = list(
        stream_planes(network, image, patch, axis=axis, overlap=overlap, window_batch=window_batch, most=most)
    )
    assert most is None or max(map(len, planes)) <= most
    streamed = torch.cat(planes).movedim(1, 0).movedim(1, 1 + axis)
    torch.testing.assert_close(streamed, blended_at_once(network, image, patch, overlap), atol=1e-5, rtol=1e-4)


def blended_at_once(network, image, patch, overlap):
    """The definition: sums of logits and weights of the whole volume, divided at the end."""
    padded, inside = pad_to(image, patch)
    total, weights = torch.zeros(3, *padded.shape[1:]), torch.zeros(padded.shape[1:])
    starts = [window_starts(n, p, overlap) for n, p in zip(padded.shape[1:], patch, strict=True)]
    for corner in itertools.product(*starts):
        window = tuple(slice(a, a + n) for a, n in zip(corner, patch, strict=True))
        with torch.no_grad():
            total[(slice(None), *window)] += network(padded[(slice(None), *window)][None])[0] * importance(patch)
        weights[window] += importance(patch)
    return (total / weights)[(slice(None), *inside)]


def test_logits_may_lie_in_a_file(tmp_path):
    torch.manual_seed(0)
    network, image = nn.Conv2d(1, 3, 3, padding=1), torch.randn(1, 40, 24)
    in_memory = torch.cat(list(stream_planes(network, image, (16, 16))))
    in_a_file = torch.cat(list(stream_planes(network, image, (16, 16), spill=tmp_path)))
    torch.testing.assert_close(in_a_file, in_memory, atol=0, rtol=0)
    assert list(tmp_path.iterdir()) == []


class Counting(nn.Conv2d):
    """A network that knows how many windows it has seen."""

    def __init__(self):
        super().__init__(1, 3, 3, padding=1)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return super().forward(x)


@pytest.mark.parametrize("window_batch", [1, 3])
@pytest.mark.parametrize("air", [0.0, -1.7])
@pytest.mark.parametrize("width", [48, 10])  # 10: every window is padded
def test_of_the_empty_windows_one_is_computed_and_the_result_stays(window_batch, air, width):
    torch.manual_seed(0)
    network, image = Counting(), torch.full((1, 96, width), air)
    image[:, 20:40, 4:9] = torch.rand(20, 5)
    image[:, 60:] += torch.rand(36, 1) * 1e-7  # what interpolation may leave of a constant
    expected = torch.cat(list(stream_planes(network, image, (16, 16), window_batch=window_batch)))
    everything, network.seen = network.seen, 0
    skipped = torch.cat(list(stream_planes(network, image, (16, 16), window_batch=window_batch, skip_empty=True)))
    torch.testing.assert_close(skipped, expected, atol=1e-6, rtol=1e-5)
    touched = sum(
        1 for a in window_starts(96, 16, 0.5) for b in window_starts(width, 16, 0.5) if a < 40 and a + 16 > 20 and b < 9
    )
    assert network.seen == touched + 1 < everything


def test_two_kinds_of_empty_windows_are_not_mistaken_for_each_other():
    torch.manual_seed(0)
    network, image = Counting(), torch.zeros(1, 64, 16)
    image[:, 32:] = 1
    expected = torch.cat(list(stream_planes(network, image, (16, 16), overlap=0.0)))
    skipped = torch.cat(list(stream_planes(network, image, (16, 16), overlap=0.0, skip_empty=True)))
    torch.testing.assert_close(skipped, expected)
    assert network.seen == 4 + 2


def test_windows_that_nobody_needs_are_not_computed_and_the_others_stay():
    torch.manual_seed(0)
    network, image = Counting(), torch.randn(1, 64, 40)
    needed = torch.zeros(64, 40, dtype=torch.bool)
    needed[30:35, 20:22] = True
    expected = torch.cat(list(stream_planes(network, image, (16, 16)))).movedim(0, 1)
    network.seen = 0
    found = torch.cat(list(stream_planes(network, image, (16, 16), needed=needed, channels=3))).movedim(0, 1)
    torch.testing.assert_close(found[:, needed], expected[:, needed])
    assert not found[:, :8].any()
    assert 0 < network.seen <= 9
    nothing = list(stream_planes(network, image, (16, 16), needed=torch.zeros_like(needed), channels=3))
    assert torch.equal(torch.cat(nothing), torch.zeros(64, 3, 40))
