"""The need of a case is told beforehand, and the plan that fits is chosen."""

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from medseg.data.plan import Plan
from medseg.device import choose_profile
from medseg.errors import InputRefused, ResourceError, UnreadableFile, UsageError
from medseg.inference import Predictor
from medseg.inference.member import Member, load_member
from medseg.inference.memory import MemoryNeed, activation_bytes, as_bytes, longest_axis, must_spill, slab_bytes
from medseg.io import Geometry, Volume, save_model
from medseg.models import create_model
from medseg.targets import ExclusiveClasses

GIB = 2**30
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def make_predictor(max_ram: int | str | None = None, shape: tuple[int, ...] = (8, 8, 8)) -> Predictor:
    settings = {
        "dataset": "d", "spatial_dims": 3, "channel_names": ["MR"], "labels": LABELS, "ignore_label": None,
        "spacing": (1.0, 1.0, 1.0), "patch_size": list(shape), "batch_size": 1, "strides": [[1, 1, 1], [2, 2, 2]],
        "normalization": [{"scheme": "none"}], "crop_nonzero": False, "mirror_axes": [], "mirror_swaps": {},
    }  # fmt: skip
    plan = Plan.from_dict(settings)
    torch.manual_seed(0)
    network = create_model("unet", spatial_dims=3, in_channels=1, out_channels=3, base_channels=4, strides=plan.strides)
    return Predictor(
        [Member(network.eval(), plan, ExclusiveClasses(labels=LABELS), choose_profile("cpu", "fp32"))], max_ram=max_ram
    )


def volume(shape: tuple[int, int, int] = (20, 16, 12)) -> Volume:
    return Volume(np.random.default_rng(0).random((1, *shape), np.float32), Geometry(shape, np.diag([1.0, 1, 1.5, 1])))


def test_activations_of_a_chain_are_counted_exactly():
    chain = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(2, 16, 1))
    pixels = 4 * 32 * 32
    assert activation_bytes(chain, (1, 1, 32, 32)) == pixels * (1 + 2 + 16)
    assert activation_bytes(chain, (3, 1, 32, 32), torch.bfloat16) == 3 * pixels * (1 + 2 + 16) // 2


def test_a_folder_says_what_its_network_needs(tmp_path):
    member = make_predictor().members[0]
    model = {"name": "unet", "in_channels": 1, "out_channels": 3, "base_channels": 4, "strides": [[1] * 3, [2] * 3]}
    described = {"model": model, "plan": member.plan.to_dict(), "target": member.target.to_dict()}
    save_model(tmp_path, member.network.state_dict(), described)
    asked = load_member(tmp_path, member.profile).activation_bytes(1)
    assert asked == member.activation_bytes(1)
    save_model(tmp_path, member.network.state_dict(), {**described, "window_bytes": 1000})
    assert load_member(tmp_path, member.profile).activation_bytes(3) == 3000
    assert load_member(tmp_path, choose_profile("cpu", "bf16")).activation_bytes(3) == 1500
    for told in ("many", 0, -1, 1.5):
        save_model(tmp_path, member.network.state_dict(), {**described, "window_bytes": told})
        with pytest.raises(UnreadableFile, match=r"window_bytes is .*expected a number of bytes"):
            load_member(tmp_path, member.profile)


def test_logits_go_to_a_file_only_where_that_helps():
    need, held = MemoryNeed(image=1, logits=10 * GIB, blocks=1, network=1, output=1), psutil.Process().memory_info().rss
    assert not must_spill(need, held + 20 * GIB)
    assert must_spill(need, held + GIB)
    with pytest.raises(ResourceError, match="crop the image"):
        must_spill(replace(need, image=10 * GIB), held + GIB)


def test_logits_in_a_file_give_the_same_labels(monkeypatch, tmp_path):
    case = volume((40, 20, 20))
    expected = make_predictor().predict(case).labels
    monkeypatch.setattr("medseg.inference.predictor.must_spill", lambda *_: True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert np.array_equal(make_predictor().predict(case).labels, expected)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_fit_is_refused_before_anything_is_allocated():
    with pytest.raises(ResourceError, match=r"needs .* GiB .*raise max_ram") as caught:
        make_predictor("1M").predict(volume())
    assert caught.value.exit_code == 4


def test_the_need_grows_with_neither_classes_times_volume_nor_depth():
    predictor = make_predictor()
    shallow, deep = (predictor.memory_need(Geometry((128, 128, n), np.eye(4))) for n in (400, 3200))
    assert deep.logits == shallow.logits
    assert deep.blocks == shallow.blocks


def test_the_prediction_is_reported_beside_the_measurement():
    memory = make_predictor().predict(volume()).memory
    assert memory["predicted"] > 0
    assert memory["measured"] is None or memory["measured"] >= 0


def test_a_flat_image_for_a_model_of_volumes():
    with pytest.raises(InputRefused, match="the image is 2D"):
        make_predictor().predict(Volume(np.zeros((1, 8, 8), np.float32), Geometry((8, 8), np.eye(4))))


def test_the_axis_that_needs_the_least():
    assert longest_axis((100, 50, 300), (50, 50, 100)) == 2
    assert longest_axis((4, 4), (8, 8)) == 1
    assert slab_bytes(3, (10, 6, 40), (8, 8, 8), 2) == 4 * 4 * 8 * 10 * 8


@pytest.mark.parametrize(
    ("size", "count"), [("8G", 8 * 2**30), ("500MiB", 500 * 2**20), ("1.5k", 1536), (7, 7), (None, None)]
)
def test_sizes(size, count):
    assert as_bytes(size) == count


def test_a_size_that_is_none():
    with pytest.raises(UsageError, match="expected e"):
        as_bytes("plenty")
