"""Planes that arrive one after the other are resampled as the whole volume would be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.data.resample import resample
from medseg.inference.restore import linear_taps, restore_planes

pytestmark = pytest.mark.numerics


@settings(deadline=None, max_examples=60)
@given(
    old=st.tuples(*[st.integers(1, 11)] * 3),
    new=st.tuples(*[st.integers(1, 19)] * 3),
    piece=st.integers(1, 5),
    block=st.integers(1, 7),
)
def test_equals_the_resampling_of_the_whole(old, new, piece, block):
    whole = torch.rand(4, *old, generator=torch.Generator().manual_seed(0))
    blocks = [(start, min(start + block, new[0])) for start in range(0, new[0], block)]
    planes = list(restore_planes(whole.movedim(1, 0).split(piece), old[0], new, blocks))
    assert [len(part) for part in planes] == [stop - start for start, stop in blocks]
    torch.testing.assert_close(torch.cat(planes).movedim(0, 1), resample(whole, new), atol=2e-5, rtol=1e-4)


def test_images_of_two_dimensions():
    whole = torch.rand(3, 8, 5)
    planes = torch.cat(list(restore_planes([whole.movedim(1, 0)], 8, (13, 9), [(0, 6), (6, 13)])))
    torch.testing.assert_close(planes.movedim(0, 1), resample(whole, (13, 9)), atol=1e-5, rtol=1e-4)


def test_planes_are_asked_for_only_when_they_are_needed():
    asked = []

    def slabs():
        for index in range(8):
            asked.append(index)
            yield torch.zeros(1, 2, 3, 3)

    blocks = restore_planes(slabs(), 8, (4, 3, 3), [(0, 1), (1, 2), (2, 3), (3, 4)])
    next(blocks)
    assert asked == [0, 1]


@pytest.mark.parametrize(("count", "wanted"), [(1, 5), (5, 1), (4, 4), (10, 3)])
def test_taps_lie_within_the_grid(count, wanted):
    lower, upper, share = linear_taps(count, wanted)
    assert 0 <= lower.min() <= upper.max() < count
    assert (share >= 0).all()
    assert (share < 1).all()
