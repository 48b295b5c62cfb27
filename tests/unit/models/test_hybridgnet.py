"""HybridGNet: published counts, the image-to-graph skip, and what its parts must do."""

from __future__ import annotations

import pytest
import torch

from medseg.blocks.skip.image_to_graph import ImageToGraph, sample_at
from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models import create_model
from medseg.models.hybridgnet import GraphOutput


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"image_size": 1024, "skip_layers": ()}, 17_461_074),
        ({"image_size": 1024, "skip_layers": (6,)}, 17_486_066),
        ({"image_size": 1024, "skip_layers": (6, 5)}, 17_511_090),
        ({"image_size": 1024, "skip_layers": (5, 4)}, 17_498_802),
        ({"image_size": 1024, "skip_layers": (6, 5), "structures": (44, 50, 26, 23, 23)}, 17_536_050),
        ({"image_size": 512, "skip_layers": (6, 5)}, 4_928_178),
        ({"image_size": 512, "skip_layers": (6, 5), "statistics": "batch"}, 4_928_178),
    ],
)
def test_parameter_counts(arguments: dict, count: int) -> None:
    with without_memory():
        model = create_model("hybridgnet", **arguments)
    assert sum(p.numel() for p in model.parameters()) == count


def test_encoder_and_bottleneck_counts() -> None:
    with without_memory():
        model = create_model("hybridgnet")
    assert sum(p.numel() for p in model.encoder.parameters()) == 602_706
    assert sum(p.numel() for layer in (model.mean, model.log_variance) for p in layer.parameters()) == 16_777_344


def test_sampling_an_index_ramp_returns_the_position() -> None:
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(40.0), indexing="ij")
    ramp = torch.stack([columns, rows])[None]
    positions = torch.tensor([[[0.25, 0.5], [0.3, 0.41], [0.81, 0.123]]])
    torch.testing.assert_close(sample_at(ramp, positions), positions * torch.tensor([40.0, 24.0]), rtol=1e-5, atol=1e-4)


def test_every_position_is_a_mean_of_three_by_three_samples() -> None:
    """The rounding of a box to 3.0000002 pixels must not make it four samples."""
    torch.manual_seed(0)
    features, positions = torch.randn(1, 1, 32, 32), 0.1 + 0.8 * torch.rand(1, 500, 2)
    window = torch.cartesian_prod(*2 * (torch.arange(-1.0, 2.0),))
    grid = (2 * (32 * positions[:, :, None] + window) + 1) / 32 - 1  # in the units of grid_sample
    expected = torch.nn.functional.grid_sample(features, grid, align_corners=False).mean(3).transpose(1, 2)
    torch.testing.assert_close(sample_at(features, positions), expected, rtol=1e-3, atol=1e-4)


def test_sampling_looks_at_the_right_image_of_the_batch() -> None:
    maps = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 9, 9)
    found = sample_at(maps, torch.full((3, 4, 2), 0.5))
    torch.testing.assert_close(found, torch.arange(3.0).view(3, 1, 1).expand(3, 4, 2))


def test_skip_returns_features_then_samples_then_positions() -> None:
    torch.manual_seed(0)
    skip = ImageToGraph(skip_channels=3, decoder_channels=5)
    nodes, features = torch.randn(2, 7, 5), torch.randn(2, 3, 8, 8)
    out = skip(features, nodes)
    assert out.shape == (2, 7, skip.out_channels) == (2, 7, 10)
    torch.testing.assert_close(out[..., :5], nodes)
    torch.testing.assert_close(out[..., 8:], nodes @ skip.position.weight[0])
    torch.testing.assert_close(out[..., 5:8], sample_at(features, out[..., 8:]))


@pytest.mark.parametrize(("layers", "nodes"), [((), []), ((5,), [6]), ((6, 4), [6, 11])])
def test_training_output_has_a_position_per_skip(layers: tuple[int, ...], nodes: list[int]) -> None:
    model = create_model("hybridgnet", image_size=(64, 96), structures=(6, 5), skip_layers=layers)
    output = model(torch.randn(2, 1, 64, 96))
    assert isinstance(output, GraphOutput)
    assert output.points.shape == (2, 11, 2)
    assert [position.shape[1] for position in output.positions] == nodes
    assert output.mean.shape == output.log_variance.shape == (2, 64)


def test_only_training_is_random() -> None:
    torch.manual_seed(0)
    model, image = create_model("hybridgnet", image_size=32, structures=(6, 5)), torch.randn(3, 1, 32, 32)
    assert not torch.equal(model(image).points, model(image).points)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(image), model(image))


@pytest.mark.parametrize(("statistics", "same"), [("running", True), ("batch", False)])
def test_batch_statistics_depend_on_the_rest_of_the_batch(statistics: str, same: bool) -> None:
    torch.manual_seed(0)
    model = create_model("hybridgnet", image_size=64, structures=(6, 5), statistics=statistics).eval()
    images = torch.randn(3, 1, 64, 64) * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1, 1)
    with torch.no_grad():
        assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-4) is same


def test_norm_axis_changes_the_result() -> None:
    model = create_model("hybridgnet", image_size=32, structures=(6, 5), norm_axis="nodes").eval()
    other = create_model("hybridgnet", image_size=32, structures=(6, 5)).eval()
    other.load_state_dict(model.state_dict())
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(model(image), other(image))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"spatial_dims": 3}, "hybridgnet is 2D"),
        ({"image_size": 100}, "multiples of 32"),
        ({"image_size": [64]}, "rows and columns"),
        ({"skip_layers": (6, 5, 4)}, "at most two"),
        ({"skip_layers": (1,)}, "numbers of 2 to 6"),
        ({"structures": ()}, "number of landmarks"),
        ({"statistics": "runing"}, "did you mean 'running'"),
        ({"structures": (3,), "edges": [[0, 3]]}, "leaves the graph"),
    ],
)
def test_settings_that_cannot_be(arguments: dict, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        create_model("hybridgnet", **{"image_size": 32, **arguments})


def test_another_size_is_refused() -> None:
    model = create_model("hybridgnet", image_size=32)
    with pytest.raises(UsageError, match=r"\(64, 64\) does not fit.*pad to \(32, 32\)"):
        model(torch.zeros(1, 1, 64, 64))
