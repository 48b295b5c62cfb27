"""Settings of ``medseg check`` and ``prepare``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from medseg.errors import UsageError
from medseg.settings.base import Processes, Settings, Sparse, UserPath
from medseg.settings.data_group import DataSettings
from medseg.settings.parts import TargetPart
from medseg.settings.plan_group import PlanSettings


class CheckSettings(Sparse):
    """The keys of ``configs/check.yaml``."""

    data: DataSettings
    target: TargetPart | None = None
    fix: bool
    output: UserPath | None
    as_json: Annotated[bool, Field(alias="json")]
    workers: Processes | None
    debug: bool

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.output and not self.fix:
            raise UsageError("output= is the folder of the repaired copy", fix="set fix=true too")
        return self


class PrepareSettings(Settings):
    """The keys of ``configs/prepare.yaml``."""

    data: DataSettings
    plan: PlanSettings
    cache_dir: UserPath | None
    debug: bool
