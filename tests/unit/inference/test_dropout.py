"""Monte Carlo dropout: passes are thinned networks; they repeat, and leave the trained network as it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from medseg.data.plan import Plan
from medseg.device import choose_profile
from medseg.errors import UsageError
from medseg.inference import Predictor
from medseg.inference.dropout import FixedDropout, thinned
from medseg.inference.member import Member
from medseg.inference.onnx_network import OnnxNetwork
from medseg.models import create_model
from medseg.targets import ExclusiveClasses

pytestmark = pytest.mark.numerics

LABELS = {"background": 0, "organ": 1, "lesion": 2}
SPACING = (1.0, 1.0, 1.0)


def member(dropout: float = 0.3) -> Member:
    plan = Plan.from_dict({
        "dataset": "d", "spatial_dims": 3, "channel_names": ["MR"], "labels": LABELS, "ignore_label": None,
        "spacing": SPACING, "patch_size": [8, 8, 8], "batch_size": 1, "strides": [[1, 1, 1], [2, 2, 2]],
        "normalization": [{"scheme": "none"}], "crop_nonzero": False, "mirror_axes": [0], "mirror_swaps": {},
    })  # fmt: skip
    torch.manual_seed(0)
    network = create_model(
        "unet", spatial_dims=3, in_channels=1, out_channels=3, base_channels=4, strides=plan.strides, dropout=dropout
    )
    return Member(network.eval(), plan, ExclusiveClasses(labels=LABELS), choose_profile("cpu", "fp32"))


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((14, 11, 9), np.float32)


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d])
def test_a_pass_drops_what_the_layer_would_and_keeps_the_mean(layer: type[nn.Dropout]) -> None:
    ones = torch.ones(3, 400, *[5] * (1 if layer in (nn.Dropout, nn.Dropout1d) else int(layer.__name__[7])))
    found = thinned(nn.Sequential(layer(0.25)), 0)(ones)
    torch.testing.assert_close(found[found > 0].unique(), torch.tensor([1 / 0.75]))
    assert (found > 0).float().mean() == pytest.approx(0.75, abs=0.06)
    assert torch.equal(found[0], found[1])  # one mask for all of a batch
    whole_channels = (found.flatten(2) == found.flatten(2)[..., :1]).all()
    assert bool(whole_channels) == (layer is not nn.Dropout)


def test_passes_and_layers_differ_repeat_and_share_the_weights() -> None:
    network = member().network
    batch = torch.randn(2, 1, 8, 8, 8)
    with torch.no_grad():
        plain = network(batch)
        first, again, second = (thinned(network, number)(batch) for number in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.allclose(first, second)
        assert not torch.allclose(first, plain)
        torch.testing.assert_close(thinned(network, 0)(batch[1:]), first[1:])
        assert torch.equal(network(batch), plain)
    twin = thinned(network, 0)
    assert all(a is b for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    seeds = [module.seed for module in twin.modules() if isinstance(module, FixedDropout)]
    assert len(set(seeds)) == len(seeds) > 3
    assert any(isinstance(module, nn.Dropout) for module in network.modules())
    assert not any(module.training for module in network.modules())


def test_many_thinned_networks_agree_with_torch_in_the_mean() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 1), nn.Dropout(0.4), nn.Conv2d(6, 2, 1)).eval()
    batch = torch.randn(1, 1, 4, 4)
    with torch.no_grad():
        ours = torch.stack([thinned(network, number)(batch) for number in range(800)])
        network[1].train()
        theirs = torch.stack([network(batch) for _ in range(800)])
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.08, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.08, rtol=0.1)


def test_the_mean_of_the_passes_is_decoded() -> None:
    one = member()
    predictor = Predictor([one], mc_dropout=3)
    found = predictor.predict(image(), spacing=SPACING, probabilities=True)
    passes = [
        Predictor([replace(one, network=thinned(one.network, n))]).predict(image(), spacing=SPACING, probabilities=True)
        for n in range(3)
    ]
    np.testing.assert_allclose(found.probabilities, np.mean([p.probabilities for p in passes], 0), atol=1e-6)
    assert np.array_equal(found.labels, found.probabilities.argmax(0))


@pytest.mark.parametrize("measure", ["entropy", "mutual_information"])
def test_uncertainty_over_passes_repeats_whatever_the_batch(measure: str) -> None:
    settings = {"mc_dropout": 4, "uncertainty": measure}
    first = Predictor([member()], **settings).predict(image(), spacing=SPACING)
    again = Predictor([member()], window_batch=5, **settings).predict(image(), spacing=SPACING)
    np.testing.assert_allclose(first.uncertainty, again.uncertainty, atol=1e-5)
    assert np.array_equal(first.labels, again.labels)
    assert 0 < first.uncertainty.max() <= 1


def test_two_threads_with_one_predictor_and_dropout() -> None:
    predictor = Predictor([member()], mc_dropout=3, tta=True, uncertainty="mutual_information")
    alone = [predictor.predict(image(seed), spacing=SPACING) for seed in range(3)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(predictor.predict, image(seed), spacing=SPACING) for seed in (0, 1, 2) * 2]
        together = [job.result() for job in jobs]
    for one, other in zip(alone * 2, together, strict=True):
        assert np.array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.uncertainty, other.uncertainty, atol=1e-6)


def test_every_pass_is_counted_in_the_need() -> None:
    one, many = (Predictor([member()], mc_dropout=n) for n in (1, 7))
    case = np.zeros((40, 12, 12), np.float32)
    needs = [p.prepare(case, spacing=SPACING).need for p in (one, many)]
    assert needs[1].logits == 7 * needs[0].logits
    assert needs[1].blocks >= 7 * needs[0].blocks
    assert needs[1].image == needs[0].image


def test_what_is_refused() -> None:
    for rate in (0.0, 1.0):
        with pytest.raises(UsageError, match=r"the model has no dropout layer.*train with model\.dropout"):
            Predictor([member(rate)], mc_dropout=5)
    onnx = OnnxNetwork.__new__(OnnxNetwork)
    nn.Module.__init__(onnx)
    with pytest.raises(UsageError, match="an ONNX model has no dropout"):
        Predictor([replace(member(), network=onnx)], mc_dropout=5)
    for wrong in (-1, 2.5):
        with pytest.raises(UsageError, match="number of passes"):
            Predictor([member()], mc_dropout=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="several passes of mc_dropout"):
        Predictor([member()], mc_dropout=1, uncertainty="mutual_information")
