"""Sliding windows: identity, coverage, equality with one whole-image call."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.device import choose_profile
from medseg.inference.sliding_window import importance, pad_to, sliding_window, window_starts

FP32 = choose_profile("cpu", "fp32")


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
    logits = sliding_window(nn.Identity(), image, (8, 6, 4), FP32, window_batch=3)
    torch.testing.assert_close(logits, image)


def test_a_pointwise_network_equals_one_call_on_the_whole_image():
    network = nn.Conv2d(3, 5, 1)
    image = torch.randn(3, 37, 21)
    expected = network(image[None])[0]
    for overlap in (0.0, 0.5):
        torch.testing.assert_close(sliding_window(network, image, (16, 8), FP32, overlap=overlap), expected)


def test_agrees_with_monai():
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3, padding=1)
    image = torch.randn(1, 32, 32)  # windows of both fall on the same places
    ours = sliding_window(network, image, (16, 16), FP32, overlap=0.5)
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
