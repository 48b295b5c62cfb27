"""Every registered model keeps the published contract, in 2D and 3D: registering a model is what gets it tested."""

from __future__ import annotations

import pytest
import torch

from medseg.errors import UsageError
from medseg.models import MODELS, create_model
from medseg.models.table import describe
from medseg.testing import check_model, image_of, model_cases, tiny_arguments

CASES = model_cases()
FLAT = [name for name, dims in CASES if dims == 2]


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("name", "spatial_dims"), CASES)
def test_model_keeps_the_contract(name: str, spatial_dims: int) -> None:
    model = create_model(name, **tiny_arguments(name, spatial_dims))
    check_model(model, spatial_dims=spatial_dims, in_channels=2, out_channels=3)


@pytest.mark.parametrize("name", FLAT)
def test_exported_model_computes_the_same(name: str) -> None:
    model = create_model(name, **tiny_arguments(name, 2)).eval()
    image = image_of(model, 2, batch=1)
    exported = torch.export.export(model, (image,)).module()
    torch.testing.assert_close(exported(image), model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FLAT)
def test_compiler_takes_the_whole_model_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    model = create_model(name, **tiny_arguments(name, 2)).to(memory_format=torch.channels_last).eval()
    image = image_of(model, 2, batch=1).to(memory_format=torch.channels_last)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), model(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FLAT)
def test_bfloat16_channels_last_is_close_to_float32(name: str) -> None:
    model = create_model(name, **tiny_arguments(name, 2)).eval()
    image = image_of(model, 2, divisors=4)
    with torch.no_grad():
        exact = model(image)
        model, image = model.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(image), exact, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(image)
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.abs().mean() + 1e-3


@pytest.mark.parametrize("name", MODELS.names())
def test_anisotropic_strides_set_the_divisor(name: str) -> None:
    if "strides" not in MODELS.arguments(name):
        pytest.skip(f"{name} takes no strides")
    arguments = tiny_arguments(name, 3) | {"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
    model = create_model(name, **arguments)
    assert tuple(model.divisor) == (2, 4, 4)
    check_model(model, spatial_dims=3, in_channels=2, out_channels=3)


@pytest.mark.parametrize("name", FLAT)
def test_wrong_size_is_refused_with_the_fitting_one(name: str) -> None:
    model = create_model(name, **tiny_arguments(name, 2))
    size = image_of(model, 2).shape[2:]
    with pytest.raises(UsageError, match=rf"pad to \({size[0]}, {size[1]}\)"):
        model(torch.zeros(1, 2, size[0] - 1, size[1]))


@pytest.mark.parametrize("name", MODELS.names())
def test_model_describes_itself(name: str) -> None:
    card = describe(name)
    assert card.summary.endswith(".")
    assert card.source != "-", "its docstring needs a line 'Source: ...'"
    assert card.spatial_dims
    assert card.parameters > 0
