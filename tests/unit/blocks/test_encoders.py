"""VoVNet's published counts and timm's weights; backbones of other families in the U-Net."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from medseg.blocks import OneShotAggregation, vovnet_encoder
from medseg.blocks.encoders import NamedEncoder
from medseg.blocks.skip.attach import attach_skips
from medseg.blocks.vovnet import EffectiveSqueezeExcite
from medseg.compose import compose
from medseg.device import without_memory
from medseg.errors import InputRefused, UsageError
from medseg.models import create_model
from medseg.testing import check_inference


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("variant", "headless", "with_head"),
    [("27_slim", 3_012_736, 3_525_736), ("39", 21_575_296, 22_600_296), ("57", 35_615_296, 36_640_296)],
)
def test_vovnets_have_the_published_counts(variant: str, headless: int, with_head: int) -> None:
    with without_memory():
        encoder = vovnet_encoder(variant, spatial_dims=2)
        assert parameters(encoder) == headless
        assert headless + parameters(nn.Linear(encoder.channels[-1], 1000)) == with_head


@pytest.mark.parametrize(("variant", "peer"), [("39", "vovnet39a"), ("19_slim", "ese_vovnet19b_slim")])
def test_counts_of_timm_are_the_same(variant: str, peer: str) -> None:
    with without_memory():
        assert parameters(vovnet_encoder(variant, spatial_dims=2)) == parameters(timm.create_model(peer, num_classes=0))


def test_with_timms_weights_the_features_are_timms() -> None:
    torch.manual_seed(0)
    peer = timm.create_model("ese_vovnet19b_slim", features_only=True).eval()
    encoder = vovnet_encoder("19_slim", spatial_dims=2).eval()
    mine, theirs = list(encoder.state_dict()), list(peer.state_dict().values())
    encoder.load_state_dict(dict(zip(mine, theirs, strict=True)))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for own, other in zip(encoder(image)[1:], peer(image)[1:], strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_weights_of_a_module_are_those_of_the_formula(spatial_dims: int) -> None:
    block = OneShotAggregation(8, 5, 11, layers=4, spatial_dims=spatial_dims, excite=False, norm="none")
    weights = sum(p.numel() for p in block.parameters() if p.ndim > 1)
    taps = 3**spatial_dims
    assert weights == taps * 5 * 8 + taps * 5**2 * 3 + (8 + 4 * 5) * 11
    assert block(torch.randn(1, 8, *(5, 3, 4)[:spatial_dims])).shape[1] == 11


def test_identity_and_gate() -> None:
    gate = EffectiveSqueezeExcite(2, 4)
    gate.full.weight.data.zero_()
    gate.full.bias.data.fill_(3)
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(gate(x), x)
    with pytest.raises(UsageError, match="equal channels"):
        OneShotAggregation(4, 2, 8, spatial_dims=2, identity=True)
    plain = OneShotAggregation(4, 2, 4, layers=2, spatial_dims=2, identity=False, excite=False)
    added = OneShotAggregation(4, 2, 4, layers=2, spatial_dims=2, excite=False)
    added.load_state_dict(plain.state_dict())
    assert torch.equal(added.eval()(x), plain.eval()(x) + x)


@pytest.mark.parametrize(
    ("encoder", "spatial_dims"),
    [
        ("vovnet/27_slim", 2),
        ("vovnet/19_slim", 3),
        ("timm/resnet18", 2),
        ("timm/mobilenetv3_small_050", 2),
        ("timm/convnext_atto", 2),
    ],
)
def test_backbones_serve_the_unet(encoder: str, spatial_dims: int) -> None:
    torch.manual_seed(0)
    model = create_model(
        "unet", spatial_dims=spatial_dims, in_channels=2, out_channels=3, base_channels=4, encoder=encoder,
        skips={"edit": ["scale"], "merge": "attention_gate"}, strides=[1, 2],
    )  # fmt: skip
    assert model.divisor == (32,) * spatial_dims
    image = torch.randn(2, 2, *[64, 32, 32][:spatial_dims])
    model.train()(image).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    check_inference(model, image, 3)


@pytest.mark.parametrize(("encoder", "spatial_dims"), [("timm/resnet18", 2), ("vovnet/19_slim", 3)])
def test_backbones_serve_unetpp(encoder: str, spatial_dims: int) -> None:
    torch.manual_seed(0)
    model = create_model(
        "unetpp_nnunet", spatial_dims=spatial_dims, in_channels=2, out_channels=3, base_channels=2, max_channels=4,
        encoder={"name": encoder},
    )  # fmt: skip
    assert (model.depth, model.divisor) == (5, (32,) * spatial_dims)
    image = torch.randn(2, 2, *[64, 32, 32][:spatial_dims])
    heads = model.train()(image)
    assert [head.shape for head in heads] == [(2, 3, *image.shape[2:])] * 5
    torch.stack([head.square().mean() for head in heads]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    check_inference(model, image, 3)
    with torch.no_grad():
        model.inference = 2  # looks at the finest three features only
        nested = [model.encoder(image)[level] for level in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(model.backbone(image, 2), nested, strict=True))
    with pytest.raises(UsageError, match=r"cannot be pruned\. Fix: set inference=2"):
        model.prune(2)
    assert not any(name.startswith("encoder.") for name in attach_skips(model, {"edit": "sc_tuner"}, train="decoder"))


def test_channels_last_features_of_transformers_come_as_channels() -> None:
    model = create_model("unet", spatial_dims=2, base_channels=4, encoder="timm/swin_tiny_patch4_window7_224")
    assert model.encoder.channels == [4, 96, 192, 384, 768]
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 1, 64, 96)).shape == (1, 2, 64, 96)  # timm's own is for 224x224 only


def test_a_backbone_of_fixed_size_refuses_others() -> None:
    model = create_model("unet", spatial_dims=2, base_channels=4, encoder="timm/coatnet_nano_rw_224").eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 224, 224)).shape == (1, 2, 224, 224)
        with pytest.raises(UsageError, match=r"is made for images of 224x224: .*Fix: set plan.patch_size=\[224,224\]"):
            model(torch.randn(1, 1, 64, 64))


def test_the_layout_of_features_does_not_depend_on_the_size_of_the_image() -> None:
    encoder = NamedEncoder(
        "timm/mambaout_femto", spatial_dims=2, in_channels=1, base_channels=4,
        layers={"norm": "instance", "activation": "relu", "dropout": 0.0},
    ).eval()  # fmt: skip
    image = torch.randn(1, 1, 192, 32)  # a quarter of the height is the number of channels
    with torch.no_grad():
        assert [x.shape[1] for x in encoder(image)] == encoder.channels
        assert encoder(image)[1].shape == (1, 48, 48, 8)
        assert torch.equal(encoder(image)[1], encoder.backbone(image)[0].movedim(-1, 1))


def test_weights_of_a_classifier_are_adapted_to_the_image_channels() -> None:
    torch.manual_seed(0)
    published = timm.create_model("resnet18").state_dict()
    model = create_model("unet", spatial_dims=2, in_channels=1, base_channels=4, encoder="timm/resnet18")
    model.encoder.load_backbone(published)
    torch.testing.assert_close(model.encoder.backbone.conv1.weight, published["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(model.encoder.backbone.layer4[1].conv2.weight, published["layer4.1.conv2.weight"])
    with pytest.raises(InputRefused, match="not those of encoder 'timm/resnet18'"):
        model.encoder.load_backbone({"conv1.weight": published["conv1.weight"]})


@pytest.mark.parametrize(
    ("encoder", "spatial_dims", "message"),
    [
        ("timm/resnet34", 3, "'timm/resnet34' is for images only"),
        ("timm/resnt34", 2, "unknown timm model 'resnt34': did you mean 'resnet34'"),
        ("vovnet/27slim", 2, "did you mean '27_slim'"),
        ("tim/resnet34", 2, "unknown encoder family 'tim': did you mean 'timm'"),
    ],
)
def test_wrong_encoders_are_named(encoder: str, spatial_dims: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("unet", spatial_dims=spatial_dims, encoder=encoder)


def test_the_name_of_an_encoder_is_given_alone_or_as_a_key() -> None:
    for words in (["model.encoder=residual"], ["model.encoder.name=residual"]):
        given = compose("train", ["model=unet", *words])["model"]["encoder"]
        model = create_model("unet", spatial_dims=2, base_channels=4, depth=1, encoder=given)
        assert len(model.encoder.stem) == 1, "the residual encoder's stem"
    assert compose("train", ["model=unet"])["model"]["encoder"] == {"name": "plain"}
    for bad in (3, None, ["plain"], {"name": 3}, {"name": "plain", "depth": 2}, {}):
        with pytest.raises(UsageError, match="encoder is"):
            create_model("unet", spatial_dims=2, base_channels=4, depth=1, encoder=bad)
