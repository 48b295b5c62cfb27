"""Every registered model becomes ONNX and TorchScript that compute the same, for batches other than the traced one."""

from __future__ import annotations

import io
import os
import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from medseg.inference.export import to_onnx
from medseg.inference.onnx_network import OnnxNetwork
from medseg.models import create_model
from medseg.testing import image_of, model_cases, tiny_arguments

onnx = pytest.importorskip("onnx")


SHALLOW: dict[str, dict[str, Any]] = {  # torch takes long for a third stage, which is as the second
    "att_swin_unet": {"depths": (2, 2)},
    "barlow_swin": {"depths": (2, 2), "decoder_channels": (8, 8, 4)},
}


def tiny(name: str, spatial_dims: int, **more: Any) -> tuple[nn.Module, torch.Tensor]:
    """The smallest model that still has every part, with weights that leave nothing constant, and a batch of two."""
    torch.manual_seed(0)
    model = create_model(name, **{**tiny_arguments(name, spatial_dims), **more}).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model, image_of(model, 2, divisors=4)


def onnx_cases() -> list[tuple[str, int]]:
    """Every model once, in 3D if it can: torch takes half a minute for one. MEDSEG_THOROUGH=1: in 2D and 3D."""
    return model_cases() if os.environ.get("MEDSEG_THOROUGH") == "1" else list(dict(sorted(model_cases())).items())


@pytest.mark.parametrize(("name", "spatial_dims"), onnx_cases())
def test_onnx_runtime_computes_the_same(name: str, spatial_dims: int) -> None:
    model, images = tiny(name, spatial_dims, **SHALLOW.get(name, {}))
    network = to_onnx(model, images)
    session = OnnxNetwork(network, device=torch.device("cpu"), threads=1)
    with torch.no_grad():
        session.check_shapes(images.shape[1:], model(images).shape[1:])
    for batch in (images[:1], torch.cat([images, -images[:1]])):
        with torch.no_grad():
            torch.testing.assert_close(session(batch), model(batch), rtol=1e-4, atol=1e-4)
    found = onnx.load_model_from_string(network)
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", 18)]
    assert found.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not re.search(rb"\w{6}\.py", network), "it tells where on this machine the code lies"  # weights can be ".py"


@pytest.mark.parametrize(("name", "spatial_dims"), model_cases())
def test_torchscript_computes_the_same(name: str, spatial_dims: int) -> None:
    model, images = tiny(name, spatial_dims)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, images, check_trace=False), buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        for batch in (images[:1], torch.cat([images, -images[:1]])):
            torch.testing.assert_close(loaded(batch), model(batch), rtol=1e-4, atol=1e-5)
