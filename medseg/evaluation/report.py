"""The report of an evaluation: on the console, as JSON and CSV, and as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.evaluation.aggregate import aggregate, foreground_mean, pool
from medseg.evaluation.case import CaseResult, Settings
from medseg.evaluation.folders import OVERLAY
from medseg.evaluation.intervals import CONFIDENCE
from medseg.evaluation.measured import MEASURED, settings_of
from medseg.evaluation.page import to_html
from medseg.evaluation.summary import how_measured, to_csv, to_summary
from medseg.evaluation.tables import format_number, to_latex, to_markdown
from medseg.io import atomic_path, write_json, write_text
from medseg.io.endings import IMAGE_ENDINGS
from medseg.text import for_terminal, visible

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

REPORT_FILES = (  # cases.parquet where pyarrow is installed
    *("summary.json", "cases.csv", "cases.parquet", "report.md", "table.tex", OVERLAY, "report.html"),
)
HEADLINE = ("dice", "iou", "hausdorff_distance_95", "nsd")


@dataclass(frozen=True)
class Skipped:
    """A case that could not be evaluated, and why."""

    id: str
    problem: str


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        settings: how it was measured.
        results: one for each case that could be evaluated, missing predictions among them.
        skipped: cases that could not.
        extra: predictions without reference, not evaluated.
        clusters: case id -> what it belongs to, e.g. its patient: intervals are over these.
        unclustered: cases of which nothing says what they belong to: each is a cluster of its own.
        strata: case id -> group, e.g. its site: scores are given for each group too.
        confidence: of the intervals.
    """

    settings: Settings
    results: tuple[CaseResult, ...]
    skipped: tuple[Skipped, ...] = ()
    extra: tuple[Path, ...] = ()
    clusters: Mapping[str, str] | None = None
    unclustered: tuple[str, ...] = ()
    strata: Mapping[str, str] | None = None
    confidence: float = CONFIDENCE

    @cached_property
    def in_pixels(self) -> bool:
        """Whether all cases are pictures of which nobody said the millimetres: lengths are counted in pixels then."""
        return self.of_pictures and self.settings.pixel_size is None

    @property
    def of_pictures(self) -> bool:
        """Whether all cases are pictures, whose pixels count as 1 mm thick, and as 1 mm wide if nobody knows better."""
        return all(result.files.reference.suffix.lower() in IMAGE_ENDINGS for result in self.results)

    def unit(self, metric: str) -> str:
        """Of a metric's numbers, "" for a share."""
        unit = self.settings.metrics[metric].unit
        flat = {"mm": "px", "ml": "1000 px"} if self.in_pixels else {"ml": "1000 mm²"}
        return flat.get(unit, unit) if self.of_pictures else unit

    def heading(self, metric: str) -> str:
        """Name and unit of a metric, "HD95 (mm)"."""
        key, unit = self.settings.metrics[metric].key, self.unit(metric)
        return f"{key} ({unit})" if unit else key

    @cached_property
    def aggregates(self) -> dict[str, Any]:
        """By class, as `aggregate` gives it."""
        return self._aggregate(self.results)

    @cached_property
    def aggregates_by_stratum(self) -> dict[str, dict[str, Any]]:
        """By group of `strata`, then as `aggregates`."""
        strata = self.strata or {}
        return {
            group: self._aggregate([result for result in self.results if strata[result.files.id] == group])
            for group in sorted(set(strata.values()))
        }

    def _aggregate(self, results: Sequence[CaseResult]) -> dict[str, Any]:
        names = (self.settings.classes, self.settings.metrics)
        return aggregate(results, *names, clusters=self.clusters, confidence=self.confidence)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row for each case and class: ``case``, ``class``, ``outcome`` and the metrics; NaN is undefined.

        Its ``attrs`` say how it was measured, which `compare` and `rank` look at.
        """
        import pandas as pd

        rows = [
            {"case": result.files.id, "class": name, "outcome": result.outcome(name), **scores}
            for result in self.results
            for name, scores in result.scores.items()
        ]
        frame = pd.DataFrame(rows)
        frame.attrs[MEASURED] = settings_of(how_measured(self))
        return frame

    @cached_property
    def pooled(self) -> dict[str, dict[str, float | None]]:
        """By class, metrics of all cases' voxels together, as `pool` gives them."""
        return pool(self.results, self.settings.classes, self.settings.metrics)

    @property
    def missing(self) -> list[str]:
        """Cases without a prediction."""
        return [result.files.id for result in self.results if result.missing]

    @property
    def scores(self) -> list[str]:
        """Metrics with a best value: not the counts and volumes."""
        return [name for name, metric in self.settings.metrics.items() if metric.best is not None]

    @property
    def headline(self) -> list[str]:
        """What comes first: the scores of `HEADLINE` that were measured, else all, else the first quantity."""
        return [name for name in HEADLINE if name in self.scores] or self.scores or list(self.settings.metrics)[:1]

    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        return to_summary(self)

    def remarks(self) -> list[str]:
        """One line each for missing predictions, skipped cases and extra predictions, naming all of them."""
        lines = []
        if self.missing:
            lines.append(f"No prediction, counted as worst ({len(self.missing)}): {', '.join(self.missing)}")
        if self.skipped:
            reasons = "; ".join(f"{case.id}: {case.problem}" for case in self.skipped)
            lines.append(f"Skipped, in no mean ({len(self.skipped)}): {reasons}")
        if self.extra:
            names = ", ".join(path.name for path in self.extra)
            lines.append(f"Prediction without reference, not evaluated ({len(self.extra)}): {names}")
        if self.unclustered:
            names = ", ".join(self.unclustered)
            lines.append(
                f"No row or value says what these belong to, each is its own ({len(self.unclustered)}): {names}"
            )
        return [visible(line) for line in lines]

    def save(self, output: str | Path) -> Path:
        """Write summary.json, cases.csv (and cases.parquet where pyarrow is installed), tables and report.html.

        The tables are report.md and table.tex; overlay.png shows the worst, the median and the best case.

        Args:
            output: folder, made if need be.

        Returns:
            The path of report.html.

        Raises:
            ResourceError: the folder cannot be written.
        """
        from medseg.evaluation.overlay import draw_overlays
        from medseg.evaluation.views import choose_views

        folder = Path(output)
        write_json(folder / "summary.json", self.summary())
        write_text(folder / "cases.csv", to_csv(self))
        if find_spec("pyarrow"):
            with atomic_path(folder / "cases.parquet") as temporary:
                self.frame.to_parquet(temporary)
        write_text(folder / "report.md", to_markdown(self))
        write_text(folder / "table.tex", to_latex(self))
        shown = choose_views(self)
        with atomic_path(folder / OVERLAY) as temporary:
            temporary.write_bytes(draw_overlays(self, shown))
        write_text(folder / "report.html", to_html(self, shown))
        return folder / "report.html"

    def print(self, console: Console | None = None) -> None:
        """Print the table of classes and the remarks."""
        if console is None:
            from rich.console import Console

            console = Console()
        console.print(self.table())
        for line in self.remarks():
            console.print(for_terminal(line, "yellow"))

    def table(self) -> Table:
        """Two rows for each class: mean ± SD over all cases, penalised ones included; and over the detected."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        heads = [self.heading(name) for name in self.headline]
        table = Table(
            "class", "over", *heads, title=f"{len(self.results)} cases", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False
        )
        for position, column in enumerate(table.columns):
            column.justify, column.no_wrap = "right" if position > 1 else "left", position > 0
            column.overflow = "fold"  # long names of classes; no number is cut
        for name, entry in self.aggregates.items():
            summaries = [entry["metrics"][metric] for metric in self.headline]
            spread = [f"{format_number(s['mean'], 3)}±{format_number(s['sd'], 2)}" for s in summaries]
            table.add_row(for_terminal(name), f"all {entry['n_cases'] - entry['n_empty']}", *spread)
            detected = [format_number(s["mean_detected"], 3) for s in summaries]
            table.add_row("", f"found {entry['n_detected']}/{entry['n_reference']}", *detected, style="dim")
            table.add_section()
        means = [format_number(foreground_mean(self.aggregates, metric), 3) for metric in self.headline]
        table.add_row("mean", "", *means, style="bold")
        return table
