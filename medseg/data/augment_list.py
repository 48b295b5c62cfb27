"""A list of albumentations transforms from a config: names of a fixed list with their arguments, never code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from medseg.data.augment2d import DISTORTED, KEYPOINTS, Intensity2d, Spatial2d, albumentations
from medseg.data.augment_settings import Transform
from medseg.data.plan import NEVER_MIRRORED, Plan
from medseg.errors import UsageError, nearest

FLIPPING = ("HorizontalFlip", "VerticalFlip", "RandomRotate90", "Transpose", "D4")
DISTORTING = ("ElasticTransform", "GridDistortion", "OpticalDistortion")
TURNING = ("RandomRotate90", "Transpose", "D4")  # exchange rows and columns
GREY_OR_COLOUR = ("ColorJitter", "CLAHE")
COLOURS = ("HueSaturationValue", "RGBShift", "ISONoise", "ToGray", "ChannelShuffle")  # of red, green and blue
ALLOWED = (
    *FLIPPING, *COLOURS, "Affine", "Rotate", "ElasticTransform", "GridDistortion",
    "OpticalDistortion", "Perspective", "ColorJitter", "RandomBrightnessContrast", "RandomGamma", "CLAHE", "GaussNoise",
    "GaussianBlur", "MedianBlur", "MotionBlur", "Defocus", "Sharpen", "MultiplicativeNoise", "Downscale",
    "CoarseDropout",
)  # fmt: skip


def listed_steps(transforms: Sequence[Mapping[str, Any]], plan: Plan) -> tuple[Transform, ...]:
    """Steps for `medseg.data.augment.Augmentation`: neighbours of one kind, spatial or of intensity, become one.

    Args:
        transforms: ``{"name": "HorizontalFlip", "p": 0.5}`` and so on, in order; arguments are albumentations' own.
            Those of intensity see the image scaled to 0..1.
        plan: of 2D images; its patch, channels and labels are looked at.

    Raises:
        UsageError: a name that is not in `ALLOWED`, arguments that albumentations refuses, or a transform that does not
            suit the plan: flips where labels name sides or the target is never mirrored, quarter turns of a patch that
            is no square, colours of images without.
    """
    built = [(_is_spatial(one["name"]), one) for one in (_build_ready(given, plan) for given in transforms)]
    steps: list[Transform] = []
    for spatial, group in groupby(built, key=lambda pair: pair[0]):
        members = [_build(one) for _, one in group]
        if spatial:
            steps.append(Spatial2d(albumentations.Compose(members, keypoint_params=KEYPOINTS)))
        else:
            steps.append(Intensity2d(albumentations.Compose(members)))
    return tuple(steps)


def check_transform(given: Any) -> dict[str, Any]:
    """A transform of a config, whose name is in `ALLOWED` and whose arguments albumentations takes.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise UsageError(f"augmentation.transforms has {given!r}", fix="give e.g. {name: HorizontalFlip, p: 0.5}")
    if given["name"] not in ALLOWED:
        raise UsageError(f"there is no transform '{given['name']}' to choose: {nearest(given['name'], ALLOWED)}")
    _build(given)
    return dict(given)


def _build_ready(given: Any, plan: Plan) -> dict[str, Any]:
    """A transform that is known and suits the plan."""
    name = check_transform(given)["name"]
    reason = plan.reasons.get("mirror_axes", "")
    if name in FLIPPING and NEVER_MIRRORED in reason:
        raise UsageError(f"{name} would mirror the images, and {reason}", fix="use augmentation=landmarks or light")
    if name in FLIPPING and (plan.mirror_swaps or "is off:" in reason):
        fix = "use augmentation=light or default, which exchange left and right"
        raise UsageError(f"{name} would mirror labels that name a side", fix=fix)
    if name in TURNING and len(set(plan.patch_size)) > 1:
        fix = "set a square plan.patch_size, or leave it out"
        raise UsageError(f"{name} needs a square patch, and it is {list(plan.patch_size)}", fix=fix)
    channels = len(plan.channel_names)
    if name in COLOURS and channels != 3:
        raise UsageError(f"{name} is for red, green and blue; the images have {channels} channel(s)")
    if name in GREY_OR_COLOUR and channels not in (1, 3):
        fix = "leave it out; RandomBrightnessContrast takes any number of channels"
        raise UsageError(f"{name} is for grey or colour; the images have {channels} channels", fix=fix)
    return dict(given)


def _build(given: Mapping[str, Any]) -> Any:
    import warnings

    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key != "name"}
    arguments = {**(DISTORTED if given["name"] in DISTORTING else {}), **arguments}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # so albumentations tells of an argument that it does not know
            return getattr(albumentations, given["name"])(**arguments)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        argument = ".".join(map(str, fault["loc"]))
        raise UsageError(f"transform {given['name']}: {argument} is {fault['input']!r}: {fault['msg']}") from None
    except (UserWarning, TypeError, ValueError) as error:
        raise UsageError(f"transform {given['name']}: {' '.join(str(error).split())}") from None


def _is_spatial(name: str) -> bool:
    return bool(issubclass(getattr(albumentations, name), albumentations.DualTransform))
