"""Settings of ``data``: which dataset, how it is read, and how its cases are divided."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import model_validator

from medseg.errors import UsageError
from medseg.settings.base import Axis, Count, OpenShare, Processes, Seed, Settings, Share, Text, UserPath

Slices = Literal["axial", "coronal", "sagittal", "0", "1", "2"] | Axis


class DataSettings(Settings):
    """The keys of ``configs/data``."""

    name: Text
    path: UserPath | None = None
    folds: Annotated[int, Ge(1), Le(1000)] = 5
    split_seed: Seed = 12345
    split_file: UserPath | None = None
    own_split: bool = True
    group_by: Text | None = None
    test: Text | None = None
    leave_out: bool = False
    slices: Slices | None = None
    color: Literal["keep", "rgb", "grey"] = "keep"
    instances: bool = False
    mask_threshold: Annotated[float, Gt(0), Le(2**32)] | None = None
    unlabelled: Literal["refuse", "skip"] = "refuse"
    limit_train: Count | OpenShare | None = None
    workers: Processes | Literal["auto"] | None = None
    loader_workers: Processes | Literal["auto"] = "auto"
    foreground_fraction: Share = 0.33

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.leave_out and self.group_by is None:
            raise UsageError("data.leave_out=true needs a group", fix="set data.group_by=, e.g. to site")
        return self
