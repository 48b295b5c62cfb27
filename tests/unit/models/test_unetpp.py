"""UNet++: published parameter counts, pruning, ensemble, and where gradients go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg.blocks.skip.nested import decoder_positions
from medseg.device import without_memory
from medseg.errors import UsageError
from medseg.models import create_model
from medseg.models.unetpp import UNetPlusPlus, mean_logits

PAPER = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1}
COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("unetpp", {}, 9_041_700),
    ("unetpp", {"deep_supervision": False}, 9_041_601),
    ("unetpp", {"depth": 1}, 100_961),
    ("unetpp", {"depth": 2}, 511_105),
    ("unetpp", {"depth": 3}, 2_204_961),
    ("unetpp", {"depth": 2, "deep_supervision": False}, 511_105),
    ("unetpp", {"in_channels": 3, "deep_supervision": False}, 9_042_177),
    ("unetpp", {"dense": False, "deep_supervision": False}, 8_728_257),
    ("unetpp_batchnorm", {}, 9_162_753),
    ("unetpp_batchnorm", {"in_channels": 3}, 9_163_329),
    ("unetpp_batchnorm", {"in_channels": 3, "deep_supervision": True}, 9_163_329 + 99),
    ("unetpp_nnunet", {"spatial_dims": 3, "out_channels": 3}, 45_966_784),
    ("unetpp_nnunet", {"spatial_dims": 3, "out_channels": 3, "base_channels": 30}, 42_716_300),
]


@pytest.fixture
def model() -> UNetPlusPlus:
    torch.manual_seed(0)
    return UNetPlusPlus(base_channels=4, out_channels=3).eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 1, 32, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "arguments", "count"), COUNTS)
def test_published_parameter_counts(name: str, arguments: dict[str, Any], count: int) -> None:
    with without_memory():
        model = create_model(name, **PAPER | arguments)
    assert sum(p.numel() for p in model.parameters()) == count


def test_shapes_of_the_papers_96_pixel_example() -> None:
    shapes = {}
    model = create_model("unetpp", **PAPER).eval()
    for name, node in model.nodes.items():
        node.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    with torch.no_grad():
        model(torch.randn(1, 1, 96, 96))
    rows = [(32, 96, 96), (64, 48, 48), (128, 24, 24), (256, 12, 12), (512, 6, 6)]
    assert shapes == {f"{i}_{j}": rows[i] for i in range(5) for j in range(5 - i)}


def test_training_returns_all_heads_deepest_first_at_full_resolution(model: UNetPlusPlus, image: Tensor) -> None:
    heads = model.train()(image)
    assert [tuple(h.shape) for h in heads] == [(2, 3, 32, 16)] * 4
    torch.manual_seed(3)
    shallowest = model.train()(image)[-1]
    torch.manual_seed(3)
    assert torch.equal(shallowest, model.head_logits(image)[0])


def test_without_deep_supervision_training_returns_one_tensor(image: Tensor) -> None:
    assert UNetPlusPlus(base_channels=4, deep_supervision=False)(image).shape == (2, 1, 32, 16)


@pytest.mark.parametrize("arguments", [{}, {"dense": False}, {"norm": "batch", "upsample": "linear"}])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pruned_network_equals_head_k_bit_for_bit(k: int, arguments: dict[str, Any], image: Tensor) -> None:
    model = UNetPlusPlus(base_channels=4, deep_supervision=True, **arguments).eval()
    pruned = model.prune(k)
    with torch.no_grad():
        expected = model.head_logits(image)[k - 1]
        assert torch.equal(pruned(image), expected)
        model.inference = k
        assert torch.equal(model(image), expected)
    assert sorted(pruned.nodes) == [f"{i}_{j}" for i in range(k + 1) for j in range(k + 1 - i)]
    assert pruned.divisor == (2**k, 2**k)


def test_pruned_network_shares_weights_and_leaves_the_model_whole(model: UNetPlusPlus, image: Tensor) -> None:
    before = sum(p.numel() for p in model.parameters())
    pruned = model.prune(2)
    own = {id(p) for p in model.parameters()}
    assert all(id(p) in own for p in pruned.parameters())
    assert sum(p.numel() for p in model.parameters()) == before
    assert len(model.heads) == 4
    with torch.no_grad():
        model.nodes["0_0"][0].conv.weight.zero_()
    assert not pruned.nodes["0_0"][0].conv.weight.any()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pruned_papers_network_has_the_count_of_that_depth(k: int) -> None:
    with without_memory():
        pruned = create_model("unetpp", **PAPER).prune(k)
    assert sum(p.numel() for p in pruned.parameters()) == [100_961, 511_105, 2_204_961, 9_041_601][k - 1]


@pytest.mark.parametrize(("k", "giga_macs"), [(1, 0.489), (2, 1.249), (3, 2.452), (4, 4.184)])
def test_pruning_saves_the_multiplications_of_the_unused_nodes(k: int, giga_macs: float) -> None:
    with without_memory(), FlopCounterMode(display=False) as counter:
        create_model("unetpp", **PAPER).eval().prune(k)(torch.empty(1, 1, 96, 96))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga_macs, rel=0.005)


def test_unsupervised_depth_cannot_be_pruned_to() -> None:
    with pytest.raises(UsageError, match="cannot prune to depth 2"):
        UNetPlusPlus(base_channels=4, deep_supervision=False).prune(2)


def test_ensemble_is_the_mean_of_softmax_probabilities(model: UNetPlusPlus, image: Tensor) -> None:
    with torch.no_grad():
        mean = torch.stack([h.softmax(1) for h in model.head_logits(image)]).mean(0)
        model.inference = "ensemble"
        torch.testing.assert_close(model(image).softmax(1), mean)


def test_ensemble_is_the_mean_of_sigmoid_probabilities(image: Tensor) -> None:
    for channels, probabilities in ((1, None), (2, "sigmoid")):
        model = UNetPlusPlus(
            base_channels=4, out_channels=channels, inference="ensemble", probabilities=probabilities
        ).eval()
        with torch.no_grad():
            mean = torch.stack([h.sigmoid() for h in model.head_logits(image)]).mean(0)
            torch.testing.assert_close(model(image).sigmoid(), mean)


@pytest.mark.parametrize("probabilities", ["softmax", "sigmoid"])
def test_mean_of_certain_heads_stays_finite(probabilities: str) -> None:
    certain = torch.tensor([[100.0, -100.0]]).view(1, 2, 1, 1)
    assert mean_logits([certain, certain], probabilities).isfinite().all()
    undecided = mean_logits([certain, -certain], probabilities)
    activated = undecided.softmax(1) if probabilities == "softmax" else undecided.sigmoid()
    torch.testing.assert_close(activated, torch.full((1, 2, 1, 1), 0.5))


def nodes_with_gradient(model: UNetPlusPlus) -> set[str]:
    return {name for name, node in model.nodes.items() if all(p.grad is not None for p in node.parameters())}


def test_deep_supervision_reaches_all_fifteen_nodes(image: Tensor) -> None:
    torch.manual_seed(0)
    model = UNetPlusPlus(base_channels=4, dropout=0.0)
    torch.stack([h.square().mean() for h in model(image)]).sum().backward()
    assert len(nodes_with_gradient(model)) == 15
    assert all(p.grad.any() for node in model.nodes.values() for p in node.parameters())


def test_first_heads_loss_leaves_deeper_nodes_without_gradient(image: Tensor) -> None:
    model = UNetPlusPlus(base_channels=4)
    model(image)[-1].square().mean().backward()
    assert nodes_with_gradient(model) == {"0_0", "1_0", "0_1"}
    untouched = [
        p for name, node in model.nodes.items() if sum(map(int, name.split("_"))) > 1 for p in node.parameters()
    ]
    assert all(p.grad is None for p in untouched)


def test_decoder_order_is_executable_and_complete() -> None:
    done = {(i, 0) for i in range(5)}
    for i, j in decoder_positions(4):
        assert (i + 1, j - 1) in done
        assert all((i, earlier) in done for earlier in range(j))
        done.add((i, j))
    assert len(done) == 15


def test_inference_of_a_shallow_head_skips_deeper_nodes(model: UNetPlusPlus, image: Tensor) -> None:
    model.nodes["4_0"].register_forward_hook(lambda *_: pytest.fail("the deepest node was computed"))
    model.inference = 2
    assert model(image).shape == (2, 3, 32, 16)


@pytest.mark.parametrize("value", ["3", 3])
def test_inference_can_be_set_by_number_or_text(value: str | int, model: UNetPlusPlus) -> None:
    model.inference = value
    assert model.inference == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inference": "ensembel"}, "did you mean 'ensemble'"),
        ({"inference": 5}, "unknown inference '5'"),
        ({"inference": 1, "deep_supervision": False}, "unknown inference '1'"),
        ({"upsample": "bilinear"}, "unknown upsample"),
        ({"downsample": "strided"}, "did you mean 'stride'"),
        ({"probabilities": "relu"}, "unknown probabilities"),
        ({"depth": 0}, "at least two stages"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        UNetPlusPlus(**arguments)


def test_paper_layers_have_dropout_relu_bias_and_no_normalisation() -> None:
    model = create_model("unetpp", **PAPER)
    modules = list(model.modules())
    assert {m.p for m in modules if isinstance(m, nn.Dropout)} == {0.5}
    assert all("norm" not in name for name, _ in model.named_parameters())
    assert all(m.bias is not None for m in modules if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)))
    assert sum(isinstance(m, nn.ReLU) for m in modules) == 30
