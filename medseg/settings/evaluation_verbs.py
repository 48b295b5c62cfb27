"""Settings of ``medseg evaluate`` and ``compare``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Len
from pydantic import BeforeValidator, Strict, model_validator

from medseg.errors import UsageError
from medseg.settings.base import LabelValue, OpenShare, Processes, Said, Settings, Text, UserPath, Word

ClassName = str | Annotated[int, Ge(0)]
Labels = Annotated[
    Annotated[tuple[LabelValue, ...], Strict(False), Len(1, 10_000)]
    | dict[ClassName, LabelValue | Annotated[tuple[LabelValue, ...], Strict(False), Len(1, 10_000)]],
    Said("a mapping of names to label values, e.g. {liver: 1, tumor: [2, 3]}, or a list of values"),
]
Millimetres = Annotated[float, Gt(0), Le(1e6)]
Tolerance = Annotated[
    Annotated[float, Ge(0), Le(1e6)] | dict[ClassName, Annotated[float, Ge(0), Le(1e6)]],
    Said("mm, at least 0, or a mapping of classes to mm"),
]
Exchange = Annotated[dict[LabelValue, LabelValue], Said("a mapping of label values, {old: new}")]


def _one_or_more(names: Any) -> Any:
    from medseg.evaluation.metrics import canonical

    several = [names] if isinstance(names, str) else names
    known = isinstance(several, list | tuple) and all(isinstance(name, str) for name in several)
    return [canonical(name) for name in several] if known else several


Metrics = Annotated[
    Annotated[tuple[Word, ...], Strict(False), Len(1, 100)], BeforeValidator(_one_or_more), Said("a list of metrics")
]


class EvaluateSettings(Settings):
    """The keys of ``configs/evaluate.yaml``."""

    predictions: UserPath | None
    model: UserPath | None
    references: UserPath | None
    output: UserPath | None
    labels: Labels | None
    instances: bool
    mask_threshold: Annotated[float, Gt(0), Le(2**32)] | None
    relabel: Exchange | None
    relabel_references: Exchange | None
    metrics: Metrics | None
    tolerance: Tolerance
    pixel_size: Millimetres | None
    surface: Literal["surfel", "voxel"] | None
    empty: Annotated[dict[str, Any], Said("a mapping, e.g. {both_empty: best}")] | None
    metadata: UserPath | None
    cluster: Text | None
    stratify: Text | None
    confidence: OpenShare
    workers: Processes | None
    on_error: Literal["stop", "skip"] | None
    resample: Literal["nearest"] | None
    debug: bool

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.model is None) == (self.predictions is None):
            fix = "give predictions=FOLDER or model=FOLDER"
            raise UsageError("exactly one of model and predictions is needed", fix=fix)
        if self.model is not None and (self.references is None or self.output is None):
            raise UsageError("model needs references and output", fix="give references=DATASET output=FOLDER")
        if self.predictions is not None and self.references is None and self.predictions.suffix.lower() != ".csv":
            raise UsageError("references is not set", fix="give references=FOLDER, or predictions=PAIRS.csv")
        if self.metrics is not None or self.empty is not None:
            from medseg.evaluation.arrays import build_metrics
            from medseg.evaluation.evaluator import EVALUATED

            build_metrics(self.metrics or EVALUATED, self.empty)
        return self


class CompareSettings(Settings):
    """The keys of ``configs/compare.yaml``."""

    a: UserPath | None
    b: UserPath | None
    methods: Annotated[dict[ClassName, UserPath], Said("a mapping of names to folders")] | None
    metrics: Metrics
    metadata: UserPath | None
    cluster: Text | None
    confidence: OpenShare
    output: UserPath
    debug: bool
