"""What "auto" precision means: by the processor, by what oneDNN is held to, by the process's environment."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.device import choose_profile, without_memory
from medseg.errors import UsageError

pytestmark = pytest.mark.numerics

BF16_PROCESSOR = {"avx2": True, "avx512_bf16": True, "amx_bf16": True}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MEDSEG_PRECISION", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "limit", "expected"),
    [
        ({"avx2": True}, None, "fp32"),
        ({"avx2": True, "avx512_f": True}, None, "fp32"),
        (BF16_PROCESSOR, None, "bf16"),
        (BF16_PROCESSOR, "AVX2", "fp32"),
        (BF16_PROCESSOR, "avx512_core", "fp32"),
        (BF16_PROCESSOR, "AVX512_CORE_BF16", "bf16"),
        (BF16_PROCESSOR, "AVX512_CORE_AMX", "bf16"),
        ({"avx2": True}, "AVX512_CORE_AMX", "fp32"),
    ],
)
def test_bf16_is_chosen_where_the_processor_computes_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], limit: str | None, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose_profile("cpu").precision == expected


def test_a_process_can_be_given_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "bf16"):
        monkeypatch.setenv("MEDSEG_PRECISION", precision)
        assert choose_profile("cpu").precision == precision
        assert "MEDSEG_PRECISION" in choose_profile("cpu").reason
        assert choose_profile("cpu", "fp32").precision == "fp32"  # what is asked for wins
    monkeypatch.setenv("MEDSEG_PRECISION", "int4")
    with pytest.raises(UsageError, match="MEDSEG_PRECISION: unknown precision 'int4'"):
        choose_profile("cpu")


def test_what_is_built_without_memory_is_not_filled() -> None:
    with without_memory():
        network = nn.Sequential(nn.Conv2d(2**20, 2**20, 3), nn.Linear(2**30, 2**30))
        nn.init.kaiming_normal_(network[0].weight)
        nn.init.trunc_normal_(network[1].weight)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert network[0].weight.shape == (2**20, 2**20, 3, 3)
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    with without_memory():
        nn.Conv3d(2, 2, 3)
    assert torch.equal(torch.rand(1), before)  # nothing was drawn
