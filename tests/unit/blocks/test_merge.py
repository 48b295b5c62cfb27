"""Merges of a skip with the decoder."""

from __future__ import annotations

import pytest
import torch

from medseg.blocks.skip import MERGES, SkipContext
from medseg.errors import UsageError

CONTEXT = SkipContext(0, 1, 3, {})


def test_concat_puts_the_decoder_first() -> None:
    merge = MERGES.build("concat", skip_channels=2, decoder_channels=1)
    out = merge(torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, 1), CONTEXT)
    assert out.flatten().tolist() == [1, 0, 0]


def test_add_sums_and_refuses_unequal_channels() -> None:
    merge = MERGES.build("add", skip_channels=1, decoder_channels=1)
    assert merge(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), CONTEXT).item() == 2
    with pytest.raises(UsageError, match="equal channels, not 2 and 3"):
        MERGES.build("add", skip_channels=2, decoder_channels=3)


def test_attention_gate_closed_hides_the_skip_and_open_is_concat() -> None:
    gate = MERGES.build("attention_gate", spatial_dims=2, skip_channels=4, decoder_channels=3)
    skip, decoder = torch.randn(2, 4, 5, 3), torch.randn(2, 3, 5, 3)
    gate.attention.weight.data.zero_()
    for bias, share in ((-200.0, 0.0), (200.0, 1.0)):
        gate.attention.bias.data.fill_(bias)
        assert torch.equal(gate(skip, decoder, CONTEXT), torch.cat((decoder, share * skip), 1))
    assert sum(p.numel() for p in gate.parameters()) == 4 * 2 + 3 * 2 + 2 + 2 + 1  # W_x, W_g, b, psi, b_psi


def test_gated_add_projects_the_skip_and_closed_is_the_decoder() -> None:
    gate = MERGES.build("gated_add", spatial_dims=2, skip_channels=4, decoder_channels=3)
    skip, decoder = torch.randn(2, 4, 5, 3), torch.randn(2, 3, 5, 3)
    gate.gate.weight.data.zero_()
    gate.gate.bias.data.fill_(-200)
    assert torch.equal(gate(skip, decoder, CONTEXT), decoder)
    gate.gate.bias.data.fill_(200)
    torch.testing.assert_close(gate(skip, decoder, CONTEXT), decoder + gate.project(skip))
