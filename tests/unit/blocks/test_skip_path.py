"""Skip paths from settings, and what is said where the settings are wrong."""

from __future__ import annotations

import pytest
import torch

from medseg.blocks.skip.attach import add_settings, attach_skips, detach_skips
from medseg.blocks.skip.path import SkipPath, SkipSite, skip_conditions, skip_path, skip_settings
from medseg.errors import UsageError
from medseg.models import create_model
from medseg.testing import check_skip


def path(settings=None, **arguments) -> SkipPath:
    return SkipPath(settings, **{"spatial_dims": 2, "channels": (4, 6, 8), "decoder_channels": (4, 6), **arguments})


@pytest.mark.parametrize("short", ["add", {"merge": "add"}, {"merge": {"name": "add"}}])
def test_short_forms_say_the_same(short) -> None:
    assert skip_settings(short) == {"pyramid": [], "edit": [], "merge": {"name": "add"}}
    assert path(short).out_channels == {"0": 4, "1": 6}


def test_levels_choose_where_a_part_works() -> None:
    chosen = path(
        {"edit": {"name": "sc_tuner", "levels": [1]}, "pyramid": {"name": "spatial_context", "levels": [0, 2]}}
    )
    assert list(chosen.edits[0]) == ["1"]
    assert [k.in_channels for k in chosen.pyramid[0].keys] == [4, 8]
    features = [torch.randn(1, c, 4, 4) for c in (4, 6, 8)]
    chosen.pyramid[0].out[0].bias.data.fill_(1)
    changed = chosen(features)
    assert [torch.equal(a, b) for a, b in zip(changed, features, strict=True)] == [False, True, True]


def test_the_bottleneck_is_edited_where_asked() -> None:
    deep = path({"edit": {"name": "sc_tuner", "include_bottleneck": True}})
    assert list(deep.edits[0]) == ["0", "1", "bottleneck"]
    deep.edits[0]["bottleneck"].up.bias.data.fill_(1)
    features = [torch.zeros(1, c, 2, 2) for c in (4, 6, 8)]
    assert [x.sum().item() for x in deep(features)] == [0, 0, 8 * 4]
    with pytest.raises(UsageError, match="passes no bottleneck"):
        path({"edit": {"name": "scale", "include_bottleneck": True}}, channels=(4, 6))


def test_sites_give_a_level_several_skips() -> None:
    sites = {"0_1": SkipSite(0, 4, 4), "0_2": SkipSite(0, 8, 4), "1_1": SkipSite(1, 6, 6)}
    several = SkipPath({"edit": "squeeze_excite"}, spatial_dims=2, channels=(4, 6, 8), sites=sites)
    assert several.out_channels == {"0_1": 8, "0_2": 12, "1_1": 12}
    assert several.num_levels == 2
    several.keep_sites({"0_1"})
    assert list(several.merges) == list(several.edits[0]) == ["0_1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("concatenate", "unknown skip merge 'concatenate': did you mean 'concat'"),
        ({"edit": ["sc_tunr"]}, "unknown skip edit 'sc_tunr': did you mean 'sc_tuner'"),
        ({"pyramid": ["dense_fpm"]}, "did you mean 'dense_fpn'"),
        ({"edits": []}, "skips has no key 'edits': did you mean 'edit'"),
        ({"edit": [{"ratio": 1}]}, "has no name"),
        ({"edit": [{"name": "scale", "levels": [5]}]}, "must be numbers of 0..1"),
        ({"edit": [{"name": "scale", "botom": 1}]}, "did you mean 'bottom'"),
        ({"edit": [{"name": "sc_tuner", "channels": 3}]}, "'channels' follows from its place"),
        ({"edit": [{"name": "scale", "per_level": [1]}]}, "per_level has 1 factors"),
        ({"edit": [{"name": "csc_tuner", "weights": {"edges": 1}}]}, "weight for 'edges'"),
        (["attention_gate"], "expected the name of a merge"),
        (3, "expected the name of a merge"),
        ({"edit": 5}, "no list of parts"),
        ({"edit": [{"name": "scale", "levels": 1}]}, "levels is 1 "),
        ({"edit": [{"name": "scale", "levels": ["0"]}]}, "must be numbers of 0..1"),
        ({"edit": [{"name": "scale", "levels": [0.5]}]}, "must be numbers of 0..1"),
        ({"edit": [{"name": "scale", "per_level": 0.5}]}, "'scale' cannot be built with per_level=0.5"),
        ({"edit": [{"name": "scale", "bottom": None}]}, "'scale' cannot be built with bottom=None"),
        ({"edit": [{"name": "csc_tuner", "conditions": "prior"}]}, "'csc_tuner' cannot be built"),
        ({"edit": [{"name": "sc_tuner", "ratio": "half"}]}, "'sc_tuner' cannot be built"),
        ({"edit": [{"name": "squeeze_excite", "reduction": 0}]}, "'squeeze_excite' cannot be built"),
        ({"edit": [{"name": "multi_dilated", "layers": 0}]}, "layers is 0"),
        ({"edit": [{"name": "multi_dilated", "growth": -1}]}, "growth is -1"),
        ({"edit": [{"name": "multi_dilated", "max_dilation": 0}]}, "max_dilation is 0"),
        ({"edit": [{"name": "multi_dilated", "max_dilation": [1, 4, 4]}]}, "one or 2 whole numbers"),
        ({"pyramid": [{"name": "dense_fpn", "width": -8}]}, "width is -8"),
        ({"pyramid": [{"name": "dense_fpn", "stacks": 0}]}, "stacks is 0"),
        ({"pyramid": [{"name": "dense_fpn", "reduction": -2}]}, "reduction is -2"),
        ({"pyramid": [{"name": "spatial_context", "reduction": -2}]}, "reduction is -2"),
        ({"edit": [{"name": "squeeze_excite", "reduction": -2}]}, "reduction is -2"),
        ({"edit": [{"name": "sc_tuner", "ratio": -1}]}, "ratio is -1"),
        ({"edit": [{"name": "sc_tuner", "strength": "high"}]}, "strength is 'high'"),
        ({"edit": [{"name": "sc_tuner", "strength": None}]}, "strength is None"),
        ({"edit": [{"name": "scale", "bottom": float("nan")}]}, "bottom is nan"),
        ({"edit": [{"name": "scale", "per_level": [1, float("inf")]}]}, "is inf"),
        ({"edit": [{"name": "csc_tuner", "conditions": {"a.b": 1}}]}, "'csc_tuner' cannot be built"),
        ({"edit": [{"name": "csc_tuner", "weights": {"prior": "much"}}]}, "weights.prior is 'much'"),
        ({"merge": {"name": "attention_gate", "hidden": 0}}, "hidden is 0"),
        ({"merge": {"name": "cross_context", "layers": -1}}, "layers is -1"),
        ({"merge": {"name": "cross_context", "num_heads": 0}}, "num_heads is 0"),
    ],
)
def test_wrong_settings_are_named(settings, message) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("unet", spatial_dims=2, base_channels=4, depth=2, skips=settings)


def test_a_part_that_finds_no_level_is_refused() -> None:
    with pytest.raises(UsageError, match="'scale' cannot be built"):
        path({"edit": {"name": "scale", "include_bottleneck": True}}, sites={})


def test_a_condition_that_the_batch_lacks_is_named() -> None:
    model = create_model("unet", spatial_dims=2, base_channels=4, depth=1, skips={"edit": "csc_tuner"}).eval()
    image = torch.randn(1, 1, 4, 4)
    with pytest.raises(UsageError, match="needs the condition 'prior', the batch has none"):
        model(image)
    with skip_conditions(model, edges=image), pytest.raises(UsageError, match="the batch has edges"):
        model(image)
    with skip_conditions(model, prior=image):
        assert model(image).isfinite().all()


def test_the_old_argument_names_the_merge() -> None:
    model = create_model("unet", spatial_dims=2, base_channels=4, depth=1, skip="add")
    assert model.decoder.stages[0][0].conv.in_channels == 4


def test_unetpp_refuses_to_prune_what_its_pyramid_needs() -> None:
    model = create_model("unetpp", base_channels=4, skips={"pyramid": ["spatial_context"]}).eval()
    with pytest.raises(UsageError, match="looks at all 5 levels"):
        model.prune(2)
    image = torch.randn(1, 1, 16, 16)
    model.inference = 2
    assert model(image).shape == (1, 1, 16, 16)


def test_unetpp_prunes_its_edits_too() -> None:
    model = create_model(
        "unetpp", base_channels=4, skips={"edit": ["squeeze_excite"], "merge": "attention_gate"}
    ).eval()
    image = torch.randn(1, 1, 16, 16)
    model.inference = 2
    pruned = model.prune(2)
    assert torch.equal(pruned(image), model(image))
    assert set(pruned.skips.merges) == {"0_1", "1_1", "0_2"}


def test_attach_refuses_what_cannot_be() -> None:
    model = create_model("unet", spatial_dims=2, base_channels=4, depth=1)
    for settings, train, message in (
        ({"merge": "add"}, "skips", "a merge cannot be attached"),
        ({"edit": "scale"}, "skips", "nothing to train"),
        ({"edit": "sc_tuner"}, "skip", "did you mean 'skips'"),
        ({"edit": "squeeze_excite"}, "head", "leaves what is attached untrained"),
        (3, "skips", "skips is 3"),
    ):
        with pytest.raises(UsageError, match=message):
            attach_skips(model, settings, train=train)
    assert not model.skips.edits
    detach_skips(model)
    attach_skips(model, train="head")
    with pytest.raises(UsageError, match="attached already"):
        attach_skips(model, {"edit": "sc_tuner"})
    with pytest.raises(UsageError, match="hosts no skip path"):
        skip_path(torch.nn.Identity())


@pytest.mark.parametrize(
    ("train", "prefixes"),
    [
        ("head", {"heads"}),
        ("skips", {"skips"}),
        ("skips+head", {"skips", "heads"}),
        ("decoder", {"skips", "heads", "decoder"}),
        ("all", {"skips", "heads", "decoder", "encoder"}),
    ],
)
def test_train_says_which_parameters_learn(train, prefixes) -> None:
    model = create_model("unet", spatial_dims=2, base_channels=4, depth=1)
    trained = attach_skips(model, None if train == "head" else {"edit": "sc_tuner"}, train=train)
    assert {name.partition(".")[0] for name in trained} == prefixes


def test_frozen_batch_norm_keeps_its_statistics_and_detach_restores_the_others() -> None:
    model = create_model("unet", spatial_dims=2, base_channels=4, depth=1, norm="batch")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attach_skips(model, {"edit": "sc_tuner"}, train="decoder")
    model.train()(torch.randn(2, 1, 8, 8))
    moved = {name for name, tensor in model.state_dict().items() if name in state and not tensor.equal(state[name])}
    assert moved
    assert all(name.startswith("decoder.") for name in moved)
    detach_skips(model)
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    model.train()(torch.randn(2, 1, 8, 8))
    assert not model.state_dict()["encoder.stages.0.0.norm.running_mean"].equal(
        state["encoder.stages.0.0.norm.running_mean"]
    )


def test_what_is_attached_follows_its_host() -> None:
    model = create_model("unet", spatial_dims=2, base_channels=4, depth=1, norm="batch").eval().double()
    image = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    before = model(image)
    attach_skips(model, {"pyramid": ["spatial_context"], "edit": ["sc_tuner"]})
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert torch.equal(model(image), before)


def test_detach_gives_frozen_batch_norm_back_to_training() -> None:
    model = create_model("unet", spatial_dims=2, base_channels=4, depth=1, norm="batch").train()
    for mode in (True, False):
        attach_skips(model.train(), {"edit": "sc_tuner"})
        model(torch.randn(2, 1, 8, 8))
        assert not model.encoder.stages[0][0].norm.training
        model.train(mode)
        detach_skips(model)
        assert {module.training for module in model.modules()} == {mode}


def test_a_pruned_network_is_detached_too() -> None:
    model = create_model("unetpp", spatial_dims=2, base_channels=4, depth=2, deep_supervision=True).eval()
    state = {name: tensor.clone() for name, tensor in model.prune(1).state_dict().items()}
    trained = attach_skips(model, {"edit": "sc_tuner"}, train="all")
    with torch.no_grad():
        for name in trained:
            model.get_parameter(name).add_(1)
    pruned = model.prune(1)
    detach_skips(pruned)
    assert pruned.state_dict().keys() == state.keys()
    assert all(tensor.equal(state[name]) for name, tensor in pruned.state_dict().items())


def test_settings_add_up_to_the_attached_network() -> None:
    whole = add_settings("add", {"edit": "sc_tuner"})
    assert whole == {"pyramid": [], "edit": [{"name": "sc_tuner"}], "merge": {"name": "add"}}
    model = create_model("unet", spatial_dims=2, base_channels=4, depth=1, skips="add")
    attach_skips(model, {"edit": "sc_tuner"})
    built = create_model("unet", spatial_dims=2, base_channels=4, depth=1, skips=whole)
    assert set(built.state_dict()) == set(model.state_dict())


class TestContract:
    """check_skip finds what it promises to find."""

    @pytest.fixture(autouse=True)
    def _part(self, monkeypatch) -> None:
        from medseg.blocks.skip import EDITS, SkipEdit

        EDITS.names()

        class Broken(SkipEdit):
            neutral_at_init = True

            def __init__(self, *, channels: int, fault: str) -> None:
                super().__init__()
                self.weight, self.fault = torch.nn.Parameter(torch.zeros(1)), fault

            def forward(self, skip, decoder, context):
                changed = {
                    "shape": lambda: skip[..., :-1],
                    "neutral": lambda: skip + 1 + self.weight,
                    "gradient": lambda: skip,
                    "batch": lambda: skip + self.weight * skip.mean(),
                    "random": lambda: skip + self.weight * torch.rand_like(skip),
                }
                return changed[self.fault]()

        monkeypatch.setitem(EDITS._factories, "broken", Broken)

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("shape", "not joined"),
            ("neutral", "changes features"),
            ("gradient", "no gradient"),
            ("batch", "depends on another"),
            ("random", "not deterministic|does not hold"),
        ],
    )
    def test_it_finds(self, fault, message) -> None:
        with pytest.raises((AssertionError, RuntimeError), match=message if fault != "shape" else None):
            check_skip("edit", {"name": "broken", "fault": fault}, spatial_dims=2)


def test_a_refused_attachment_leaves_nothing() -> None:
    model = create_model("unet", spatial_dims=2, base_channels=4, depth=2)
    before = list(model.state_dict())
    with pytest.raises(UsageError, match="sc_tunr"):
        attach_skips(model, {"pyramid": ["spatial_context"], "edit": ["sc_tunr"]})
    assert list(model.state_dict()) == before
