"""Settings of ``medseg predict`` and ``export``."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from annotated_types import Ge, Le, Len
from pydantic import AfterValidator, Strict, model_validator

from medseg.errors import UsageError
from medseg.settings.base import (
    LabelValue,
    OpenShare,
    PartialShare,
    Said,
    Settings,
    Some,
    Sparse,
    Text,
    Threads,
    UserPath,
)
from medseg.settings.devices import Device, Precision, check_precision
from medseg.settings.training_verbs import Plugins

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)
_MEMORY = re.compile(r"(\d{1,12}(\.\d{1,9})?)\s*([KMGT]?)(i?B)?", re.ASCII | re.IGNORECASE)


def _shard(text: str) -> str:
    match = _SHARD.fullmatch(text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError
    return text


def _memory(text: str) -> str:
    match = _MEMORY.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise ValueError
    return text


Shard = Annotated[str, AfterValidator(_shard), Said("i/n, from 1/n to n/n, e.g. 1/8")]
Memory = Annotated[
    Annotated[int, Ge(1), Le(2**60)] | Annotated[str, AfterValidator(_memory)], Said("bytes, or e.g. 8G or 500M")
]
Scale = Annotated[float, Ge(0.25), Le(4)]


class Operation(Sparse):
    """One step of post-processing, see `medseg.inference.postprocess`."""

    operation: Literal["largest_component", "minimum_size", "fill_holes", "opening"]
    label: LabelValue
    ml: Annotated[float, Ge(0), Le(1e9)] | None = None
    size: Annotated[int, Ge(1), Le(1000)] | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        needed = {"minimum_size": "ml", "opening": "size"}.get(self.operation)
        if needed and getattr(self, needed) is None:
            raise UsageError(f"operation '{self.operation}' lacks {needed}", fix=f"give {needed} beside its label")
        return self


class PredictSettings(Settings):
    """The keys of ``configs/predict.yaml``."""

    model: UserPath | Some[UserPath]
    adapter: UserPath | None
    input: UserPath
    cases: Text | None
    output: UserPath
    overwrite: bool
    probabilities: bool
    dicom_seg: bool
    shard: Shard | None
    uncertainty: Literal["entropy", "mutual_information"] | None
    postprocess: bool | Annotated[tuple[Operation, ...], Strict(False)]
    threshold: OpenShare | None
    tta: bool
    tta_scales: Annotated[tuple[Scale, ...], Strict(False), Len(1, 16)]
    mc_dropout: Annotated[int, Ge(0), Le(1000)]
    overlap: PartialShare
    window_batch: Annotated[int, Ge(1), Le(4096)] | None
    skip_empty: bool
    mask: UserPath | None
    max_ram: Memory | None
    max_vram: Memory | None
    precision: Precision
    device: Device
    nan: Literal["refuse", "zero"]
    threads: Threads | None
    verbose: bool
    plugins: Plugins
    debug: bool

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_precision("", self.device, self.precision)
        if len(set(self.tta_scales)) < len(self.tta_scales):
            raise UsageError(f"tta_scales is {list(self.tta_scales)} (expected each once)", fix="leave out the double")
        return self


class ExportSettings(Settings):
    """The keys of ``configs/export.yaml``."""

    model: UserPath
    output: UserPath
    format: Literal["onnx", "monai"]
    plugins: Plugins
    debug: bool
