"""A list of albumentations transforms from a config: names of a fixed list with their arguments, never code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from medseg.data.augment2d import Intensity2d, Spatial2d, albumentations
from medseg.data.augment_settings import Transform
from medseg.data.plan import Plan
from medseg.errors import UsageError, nearest

FLIPPING = ("HorizontalFlip", "VerticalFlip", "RandomRotate90", "Transpose", "D4")
TURNING = ("RandomRotate90", "Transpose", "D4")  # exchange rows and columns
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
            suit the plan: flips where labels name sides, quarter turns of a patch that is no square.
    """
    built = [(_is_spatial(one["name"]), one) for one in (_build_ready(given, plan) for given in transforms)]
    steps: list[Transform] = []
    for spatial, group in groupby(built, key=lambda pair: pair[0]):
        pipeline = albumentations.Compose([_build(one) for _, one in group])
        steps.append(Spatial2d(pipeline) if spatial else Intensity2d(pipeline))
    return tuple(steps)


def _build_ready(given: Any, plan: Plan) -> dict[str, Any]:
    """A transform that is known and suits the plan."""
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise UsageError(f"a transform is {given!r}", fix="give e.g. {name: HorizontalFlip, p: 0.5}")
    name = given["name"]
    if name not in ALLOWED:
        raise UsageError(f"there is no transform '{name}' to choose: {nearest(name, ALLOWED)}")
    sides = bool(plan.mirror_swaps) or "is off:" in plan.reasons.get("mirror_axes", "")
    if name in FLIPPING and sides:
        fix = "use augmentation=light or default, which exchange left and right"
        raise UsageError(f"{name} would mirror labels that name a side", fix=fix)
    if name in TURNING and len(set(plan.patch_size)) > 1:
        fix = "set a square plan.patch_size, or leave it out"
        raise UsageError(f"{name} needs a square patch, and it is {list(plan.patch_size)}", fix=fix)
    if name in COLOURS and len(plan.channel_names) != 3:
        raise UsageError(f"{name} is for red, green and blue; the images have {len(plan.channel_names)} channel(s)")
    return dict(given)


def _build(given: Mapping[str, Any]) -> Any:
    import warnings

    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key != "name"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # so albumentations tells of an argument that it does not know
            return getattr(albumentations, given["name"])(**arguments)
    except (UserWarning, TypeError, ValueError) as error:
        raise UsageError(f"transform {given['name']}: {' '.join(str(error).split())}") from None


def _is_spatial(name: str) -> bool:
    return bool(issubclass(getattr(albumentations, name), albumentations.DualTransform))
