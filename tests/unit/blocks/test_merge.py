"""Merges of a skip with the decoder."""

from __future__ import annotations

import pytest
import torch

from medseg.blocks.skip import MERGES
from medseg.errors import UsageError


@pytest.mark.parametrize("name", MERGES.names())
def test_merge_returns_the_channels_that_it_promises(name: str) -> None:
    merge = MERGES.build(name, spatial_dims=3, skip_channels=4, decoder_channels=4)
    out = merge(torch.randn(2, 4, 3, 5, 2), torch.randn(2, 4, 3, 5, 2))
    assert out.shape == (2, merge.out_channels, 3, 5, 2)


def test_concat_puts_the_decoder_first() -> None:
    merge = MERGES.build("concat", spatial_dims=2, skip_channels=2, decoder_channels=1)
    out = merge(torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, 1))
    assert out.flatten().tolist() == [1, 0, 0]


def test_add_sums_and_refuses_unequal_channels() -> None:
    merge = MERGES.build("add", spatial_dims=2, skip_channels=1, decoder_channels=1)
    assert merge(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).item() == 2
    with pytest.raises(UsageError, match="equal channels, not 2 and 3"):
        MERGES.build("add", spatial_dims=2, skip_channels=2, decoder_channels=3)
