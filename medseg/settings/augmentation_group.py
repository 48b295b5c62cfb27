"""Settings of ``augmentation`` and ``views``: null keeps what the preset says."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, model_validator

from medseg.errors import UsageError
from medseg.settings.base import Pair, Said, Settings, Share, Sparse


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError
    return pair


Rising = AfterValidator(_rising)
Factors = Annotated[Pair[Annotated[float, Ge(0.01), Le(100)]], Rising, Said("two numbers, 0.01 to 100, the smaller first")]
Zooms = Annotated[Pair[Annotated[float, Ge(0.05), Le(20)]], Rising, Said("two numbers, 0.05 to 20, the smaller first")]
Strengths = Annotated[Pair[Annotated[float, Ge(0), Le(100)]], Rising, Said("two numbers, 0 to 100, the smaller first")]
Shares = Annotated[Pair[Annotated[float, Gt(0), Le(1)]], Rising, Said("two shares above 0, at most 1, the smaller first")]
Degrees = Annotated[float, Ge(0), Le(180)]


class AugmentationChoice(Sparse):
    """The keys of ``configs/augmentation``: a preset and what replaces its values, or a list of transforms."""

    name: Literal["none", "light", "default", "landmarks", "list"]
    rotation_degrees: Degrees | None = None
    scale: Zooms | None = None
    shear: Annotated[float, Ge(0), Le(2)] | None = None
    elastic_voxels: Annotated[float, Ge(0), Le(1000)] | None = None
    noise_std: Strengths | None = None
    blur_sigma: Strengths | None = None
    brightness: Factors | None = None
    contrast: Factors | None = None
    gamma: Factors | None = None
    low_resolution: Shares | None = None
    spatial_probability: Share | None = None
    elastic_probability: Share | None = None
    mirror_probability: Share | None = None
    noise_probability: Share | None = None
    blur_probability: Share | None = None
    brightness_probability: Share | None = None
    contrast_probability: Share | None = None
    gamma_probability: Share | None = None
    low_resolution_probability: Share | None = None
    keep_inside: bool | None = None
    transforms: Annotated[tuple[dict[str, Any], ...], Said("a list of {name: ..., ...}")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _transforms(cls, given: Any) -> Any:
        """Build each transform once, so that albumentations judges its arguments before anything is read."""
        if not isinstance(given, dict) or not isinstance(given.get("transforms"), list):
            return given
        from medseg.data.augment_list import check_transform

        return {**given, "transforms": tuple(check_transform(one) for one in given["transforms"])}

    @model_validator(mode="after")
    def _together(self) -> Self:
        for key, value in self:
            foreign = {"none": key != "name", "list": key not in ("name", "transforms")}.get(
                self.name, key == "transforms"
            )
            if foreign and value is not None:
                fix = f"leave out augmentation.{key}=, or choose another augmentation"
                raise UsageError(f"there is no key 'augmentation.{key}' with augmentation.name={self.name}", fix=fix)
        return self


class ViewSettings(Settings):
    """The keys of ``configs/views``, for pretraining."""

    crop: Shares
    horizontal_flip: Share
    vertical_flip: Share
    rotation_degrees: Degrees
    rotation: Share
    jitter: Share
    brightness: Share
    contrast: Share
    saturation: Share
    hue: Annotated[float, Ge(0), Le(0.5)]
    gray: Share
    blur: Share
    solarize: Share
