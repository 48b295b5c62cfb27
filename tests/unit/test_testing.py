"""A contract is worth what it refuses: each broken promise is caught, with its name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medseg.targets import ExclusiveClasses
from medseg.testing import check_model, check_target, pad_to_divisor


class Honest(nn.Module):
    divisor = (2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image)


class DeadParameter(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(1))


class BatchMixing(Honest):
    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image - image[:1])


class Random(Honest):
    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image) + torch.rand(())


class Resizing(Honest):
    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image)[:, :, 1:]


class ListInEvaluation(Honest):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.conv(image)]


class UnsavedState(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(lambda module, state, prefix, meta: state.update(forgotten(state)))


def forgotten(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"conv.bias": torch.zeros_like(state["conv.bias"])}


class NotFinite(Honest):
    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image) / 0


def test_honest_model_passes_and_stays_unchanged() -> None:
    model = Honest()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_model(model, spatial_dims=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert model.conv.weight.grad is None


@pytest.mark.parametrize(
    ("model", "promise"),
    [
        (DeadParameter, "unused gets no gradient"),
        (BatchMixing, "order of the batch"),
        (Random, "not deterministic"),
        (Resizing, "logits have shape"),
        (ListInEvaluation, "not list"),
        (UnsavedState, "does not hold all"),
        (NotFinite, "not finite"),
    ],
)
def test_broken_model_is_refused(model: type[Honest], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_model(model(), spatial_dims=2)


def test_divisor_needs_one_number_per_axis() -> None:
    with pytest.raises(AssertionError, match="does not have 3 axes"):
        check_model(Honest(), spatial_dims=3)


def test_target_that_forgets_a_setting_is_refused() -> None:
    class Forgetful(ExclusiveClasses):
        def to_dict(self) -> dict:
            return {key: value for key, value in super().to_dict().items() if key != "loss"}

    target = Forgetful(labels={"background": 0, "organ": 1}, loss="cross_entropy")
    with pytest.raises(AssertionError, match="to_dict does not survive"):
        check_target(target, torch.randint(0, 2, (1, 1, 4, 4)))


def test_pad_to_divisor_pads_the_end_with_zeros() -> None:
    padded = pad_to_divisor(torch.ones(1, 1, 3, 4), (2, 4))
    assert padded.shape == (1, 1, 4, 4)
    assert padded[..., :3, :].all()
    assert not padded[..., 3:, :].any()
