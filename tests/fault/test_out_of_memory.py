"""A device that runs out of memory: fewer windows, then the CPU, then one line. There is no GPU here: a profile stands
for one, whose network call raises what CUDA raises; everything beyond that boundary is the real thing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.data.dataset import Case
from medseg.data.plan import Plan
from medseg.device import DeviceProfile, choose_profile
from medseg.errors import PartialFailure, ResourceError, UsageError
from medseg.inference import Predictor, predict_cases
from medseg.inference.fallback import out_of_memory
from medseg.inference.member import Member
from medseg.inference.record import Record, record_path
from medseg.inference.vram import LIBRARIES, device_need, fitting_window_batch, weight_bytes
from medseg.io import read_json
from medseg.models import create_model
from medseg.targets import ExclusiveClasses

pytestmark = pytest.mark.numerics

LABELS = {"background": 0, "organ": 1, "lesion": 2}
SPACING = (1.0, 1.0, 1.0)
MIB = 2**20


@dataclass(frozen=True)
class SmallGpu(DeviceProfile):
    """Says that it is a CUDA device, computes on the CPU, and has room for ``room`` windows; ``calls`` counts."""

    room: int = 0
    fails_at: int | None = None
    calls: list[int] | None = None
    error: type[RuntimeError] = torch.OutOfMemoryError

    def run(self, network: nn.Module, batch: Tensor) -> Tensor:
        assert self.calls is not None
        self.calls.append(len(batch))
        if len(batch) > self.room or len(self.calls) == self.fails_at:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return network(batch).float()


def gpu(room: int, precision: str = "fp32", **changes: object) -> SmallGpu:
    return SmallGpu(torch.device("cuda"), precision, False, False, 1, "a fake", room, calls=[], **changes)  # type: ignore[arg-type]


def member(profile: DeviceProfile, **changes: object) -> Member:
    plan = Plan.from_dict({
        "dataset": "d", "spatial_dims": 3, "channel_names": ["MR"], "labels": LABELS, "ignore_label": None,
        "spacing": SPACING, "patch_size": [8, 8, 8], "batch_size": 1, "strides": [[1, 1, 1], [2, 2, 2]],
        "normalization": [{"scheme": "none"}], "crop_nonzero": False, "mirror_axes": [0], "mirror_swaps": {}, **changes,
    })  # fmt: skip
    torch.manual_seed(0)
    network = create_model(
        "unet", spatial_dims=3, in_channels=1, out_channels=3, base_channels=4, strides=plan.strides, dropout=0.2
    )
    return Member(network.eval(), plan, ExclusiveClasses(labels=LABELS), profile)


def image() -> np.ndarray:
    return np.random.default_rng(0).random((20, 17, 9), np.float32)


@pytest.fixture
def expected() -> np.ndarray:
    return Predictor([member(choose_profile("cpu", "fp32"))]).predict(image(), spacing=SPACING).labels


def test_smaller_batches_give_the_same_labels(expected: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    profile = gpu(room=3)
    found = Predictor([member(profile)], window_batch=8).predict(image(), spacing=SPACING)
    assert np.array_equal(found.labels, expected)
    assert found.memory["fallbacks"] == ["window batch 8 -> 4", "window batch 4 -> 2"]
    assert found.memory["window_batch"] == 2
    assert "cuda is out of memory: window batch 8 -> 4" in caplog.text
    assert profile.calls[:2] == [8, 4]
    assert max(profile.calls[2:]) == 2


@pytest.mark.parametrize("settings", [{}, {"tta": True}, {"tta_scales": [1.0, 1.3]}, {"mc_dropout": 3}])
def test_the_cpu_takes_over_and_the_network_stays_where_it_was(settings: dict) -> None:
    reference = Predictor([member(choose_profile("cpu", "fp32"))], **settings).predict(image(), spacing=SPACING)
    one = member(gpu(room=0))
    before = {name: tensor.data_ptr() for name, tensor in one.network.named_parameters()}
    predictor = Predictor([one], window_batch=2, **settings)
    found = predictor.predict(image(), spacing=SPACING)
    assert np.array_equal(found.labels, reference.labels)
    passes = settings.get("mc_dropout", 1)
    assert found.memory["fallbacks"] == ["window batch 2 -> 1", *["network on the CPU"] * passes]
    assert before == {name: tensor.data_ptr() for name, tensor in one.network.named_parameters()}
    assert one.profile.device.type == "cuda"
    again = predictor.predict(image(), spacing=SPACING)  # the next case tries the device again
    assert again.memory["fallbacks"] == found.memory["fallbacks"]


def test_a_call_in_the_middle_of_a_case(expected: np.ndarray) -> None:
    profile = gpu(room=4, fails_at=3)
    found = Predictor([member(profile)], window_batch=4).predict(image(), spacing=SPACING)
    assert np.array_equal(found.labels, expected)
    assert found.memory["fallbacks"] == ["window batch 4 -> 2"]
    assert profile.calls[2:5] == [4, 2, 2]


def test_members_retreat_each_for_itself(expected: np.ndarray) -> None:
    large, small = gpu(room=2), gpu(room=0)
    found = Predictor([member(large), member(small)], window_batch=2).predict(image(), spacing=SPACING)
    assert np.array_equal(found.labels, expected)
    assert found.memory["fallbacks"] == ["window batch 2 -> 1", "network on the CPU"]
    assert len(large.calls) > len(small.calls) == 2


class NoMemory(nn.Module):
    """What torch raises where even main memory is at its end."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"
            )
        return x.repeat(1, 3, 1, 1, 1)


def test_nothing_left_is_told_in_one_line(tmp_path: Path, threshold_predictor: Callable[..., Predictor]) -> None:
    nib.save(nib.Nifti1Image(image(), np.eye(4)), tmp_path / "a.nii.gz")
    starved = replace(member(choose_profile("cpu", "fp32")), network=NoMemory())
    with pytest.raises(ResourceError, match="out of memory with one window of 8 x 8 x 8 voxels on the CPU") as caught:
        predict_cases(Predictor([starved]), [Case("a", (tmp_path / "a.nii.gz",))], tmp_path / "out", progress=False)
    assert caught.value.exit_code == 4
    assert "case a" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_no_room_on_the_cpu_is_known_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.inference.fallback.free_room", lambda _: 1000)
    profile = gpu(room=0)
    with pytest.raises(ResourceError, match="out of memory with one window"):
        Predictor([member(profile)]).predict(image(), spacing=SPACING)
    assert profile.calls == [1]


def test_the_fall_back_is_recorded_for_its_case_and_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(image(), np.eye(4)), tmp_path / f"{name}.nii.gz")
    (tmp_path / "c.nii.gz").write_bytes(b"no image")
    cases, record = [Case(n, (tmp_path / f"{n}.nii.gz",)) for n in "abc"], Record(record_path(tmp_path, None))
    predictor = Predictor([member(gpu(room=2, fails_at=1))], window_batch=2)
    with pytest.raises(PartialFailure):
        predict_cases(predictor, cases, tmp_path / "out", progress=False, record=record)
    record.save()
    written = read_json(tmp_path / "predictions.json")["cases"]
    assert written["a"]["memory"]["fallbacks"] == ["window batch 2 -> 1"]
    assert (written["a"]["memory"]["window_batch"], written["b"]["memory"]["window_batch"]) == (1, 2)
    assert written["b"]["memory"]["fallbacks"] == []
    assert np.array_equal(
        np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj),
        np.asarray(nib.load(tmp_path / "out" / "b.nii.gz").dataobj),
    )


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("MPS backend out of memory"))
    assert out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.repeat(1, 3, 1, 1, 1) if x.is_meta else x.view(3, 3)

    with pytest.raises(RuntimeError, match="invalid for input"):
        Predictor([replace(member(choose_profile("cpu", "fp32")), network=Broken())]).predict(image(), spacing=SPACING)


def test_the_largest_batch_within_max_vram_is_chosen() -> None:
    one = member(gpu(room=99), patch_size=[32, 32, 32])
    per_window = device_need([one], 2) - device_need([one], 1)
    fixed = device_need([one], 1) - per_window
    assert fixed == LIBRARIES + weight_bytes(one)
    # What arrives and leaves, and at the least the widest pair of feature maps.
    assert per_window >= 4 * 32**3 * (1 + 3 + 4 + 4)
    for windows in (1, 3, 16):
        budget = fixed + windows * per_window
        assert Predictor([one], max_vram=budget).window_batch == windows
        if windows > 1:
            assert Predictor([one], max_vram=budget - 1, window_batch=windows).window_batch == windows - 1
        assert Predictor([one], max_vram=budget, window_batch=2).window_batch == min(2, windows)
    assert Predictor([one], max_vram="8G").window_batch == 16
    assert Predictor([one]).window_batch == 1
    with pytest.raises(
        ResourceError, match=r"needs 0\.50 GiB on cuda for a single window .max_vram is 0\.10 GiB"
    ) as error:
        Predictor([one], max_vram="100M")
    assert error.value.exit_code == 4
    with pytest.raises(UsageError, match="window_batch is 0"):
        Predictor([one], window_batch=0)


def test_what_lower_precision_and_more_members_need() -> None:
    full, half = (member(gpu(room=1, precision=p), patch_size=[32, 32, 32]) for p in ("fp32", "bf16"))
    assert device_need([half], 1) < device_need([full], 1)
    assert device_need([full, full], 1) == device_need([full], 1) + weight_bytes(full)
    on_cpu = member(choose_profile("cpu", "fp32"))
    assert device_need([on_cpu], 1) == 0
    assert fitting_window_batch([on_cpu], 5, 1) == 5  # max_vram is about accelerators


def test_main_memory_is_not_asked_for_what_lies_on_the_device() -> None:
    shape = {"patch_size": [32, 32, 32]}
    case = np.zeros((40, 32, 32), np.float32)
    there, here = (
        Predictor([member(profile, **shape)]).prepare(case, spacing=SPACING).need.network
        for profile in (gpu(room=1), choose_profile("cpu", "fp32"))
    )
    assert 0 < there < here
    found = Predictor([member(gpu(room=4))], max_vram=LIBRARIES + MIB * 8, window_batch=4).predict(
        image(), spacing=SPACING
    )
    assert found.memory["device_predicted"] == device_need([member(gpu(room=4))], 4) > LIBRARIES
