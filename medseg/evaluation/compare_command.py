"""``medseg compare``: evaluations of several methods in, tests, rankings and a picture out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.data.outputs import check_outputs, keep_account
from medseg.errors import BadDataset, UsageError
from medseg.evaluation.comparison import Comparison, PairedResult, compare
from medseg.evaluation.figures import BLUE, GREY, RED, to_png
from medseg.evaluation.measured import MEASURED, settings_of
from medseg.evaluation.ranking import SCHEMES, Ranking, rank
from medseg.evaluation.statistics import ALPHA, FEWEST, read_table
from medseg.io import atomic_path, read_json, write_json, write_text
from medseg.text import for_figure, for_terminal, to_csv

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table
    from rich.text import Text

CASES = "cases.csv"

COMPARISON_FILES = ("comparison.json", "comparison.csv", "comparison.png")


def compare_command(cfg: Mapping[str, Any]) -> int:
    """Compare evaluations, print the table and write comparison.json, comparison.csv and comparison.png.

    Args:
        cfg: ``a`` and ``b``, and further ones in ``methods`` (name: path), are folders that `medseg evaluate` wrote, or
            their cases.csv; ``metrics``, ``metadata`` (CSV), ``cluster``, ``confidence``, ``output``.

    Raises:
        MedsegError: as `compare`; a folder that holds no evaluation; an output as `check_outputs` refuses it.
    """
    paths = _paths(cfg)
    output = check_outputs(cfg["output"], COMPARISON_FILES, [*paths.values(), cfg.get("metadata")])
    methods = {name: read_cases(path) for name, path in paths.items()}
    metadata = None if cfg.get("metadata") is None else read_table(cfg["metadata"])
    if cfg.get("cluster") and metadata is None:
        raise UsageError(f"cluster={cfg['cluster']} is a column of a table", fix="give metadata=FILE.csv")
    metrics = [cfg["metrics"]] if isinstance(cfg["metrics"], str) else list(cfg["metrics"])
    found = compare(methods, metrics, metadata=metadata, cluster=cfg["cluster"], confidence=cfg["confidence"])
    rankings = {metric: [rank(methods, metric, scheme=scheme) for scheme in SCHEMES] for metric in metrics}
    keep_account(output, COMPARISON_FILES)
    save(found, rankings, output)
    report(found, rankings)
    print(f"Comparison: {output / 'comparison.json'}, picture {output / 'comparison.png'}")
    return 0


def read_cases(path: str | Path) -> pd.DataFrame:
    """The table of cases of an evaluation: a folder that holds cases.csv (also in ``evaluation``), or the file.

    Returns:
        Cells as text; ``attrs`` say how it was measured, where summary.json lies beside cases.csv.

    Raises:
        BadDataset: there is none, or a column is missing.
        UnreadableFile: it is no table.
    """
    path = Path(path)
    files = [path] if path.is_file() else [path / CASES, path / "evaluation" / CASES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise BadDataset("there is no cases.csv", path=path, fix="give a folder that medseg evaluate wrote")
    frame, summary = read_table(file, needed=("case", "class")), file.with_name("summary.json")
    if file.name == CASES and summary.is_file():
        try:
            frame.attrs[MEASURED] = settings_of(read_json(summary))
        except BadDataset as error:
            raise BadDataset(error.problem, path=summary, fix=error.fix) from None
    return frame


def save(found: Comparison, rankings: Mapping[str, Sequence[Ranking]], output: Path) -> None:
    """Write comparison.json, comparison.csv and comparison.png into a folder.

    Raises:
        ResourceError: it cannot be written.
    """
    content = {
        "results": [asdict(result) for result in found.results],
        "rankings": {metric: [asdict(ranking) for ranking in several] for metric, several in rankings.items()},
        "unshared_cases": found.unshared,
        "unshared_classes": found.unshared_classes,
        "absent_classes": found.absent,
        "without_cluster": found.unclustered,
        "measured_unknown": found.unmeasured,
        "definitions": {
            "difference": "b - a, penalised values included; low and high: BCa bootstrap interval",
            "n": "all cases that the methods share; a class that a method is right to leave empty (empty_a, empty_b) "
            "has the best value, so the means may be better than those of an evaluation, which leaves these out",
            "invented": "cases in which the class is in the method's prediction alone (invented_a, invented_b)",
            "holm": "permutation p corrected by Holm over the classes and pairs of a metric",
        },
    }
    facts, table, picture = (output / name for name in COMPARISON_FILES)
    write_json(facts, content)
    rows = found.frame.astype(object).where(found.frame.notna(), None)
    write_text(table, to_csv(list(rows.columns), rows.itertuples(index=False)))
    with atomic_path(picture) as temporary:
        temporary.write_bytes(draw_differences(found))


def report(found: Comparison, rankings: Mapping[str, Sequence[Ranking]]) -> None:
    """Print the results, the rankings and what took no part."""
    from rich.console import Console

    console = Console()
    console.print(results_table(found))
    for metric, several in rankings.items():
        for ranking in several:
            console.print(for_terminal(f"{metric}, {_ranking_line(ranking)}"))
    console.print(
        "empty: cases in which the method is right to leave the class empty, which count as best", style="dim"
    )
    for line in found.remarks():
        console.print(for_terminal(line, "yellow"))


def results_table(found: Comparison) -> Table:
    """Two lines for each result, of method a and of method b; no number is cut on a terminal of 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    names = ("metric, class", "method")
    table = Table(*names, "n", "mean", "empty", "invented", "b - a", "interval", "p (Holm)", box=SIMPLE_HEAD)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for position, column in enumerate(table.columns):
        column.overflow, column.no_wrap = "fold", position >= len(names)
    for r in found.results:
        interval = ("–",) if r.low is None else (f"{r.low:+.4f}", f"to {r.high:+.4f}")
        few = ("too few",) if r.units < FEWEST else ()
        cells = (
            *((r.metric, r.name), (r.a, r.b), (str(r.n),), (f"{r.mean_a:.4f}", f"{r.mean_b:.4f}")),
            *((str(r.empty_a), str(r.empty_b)), (str(r.invented_a), str(r.invented_b))),
            *((f"{r.difference:+.4f}",), interval, (f"{r.holm:.4f}", *few)),
        )
        table.add_row(*(_lines(*cell) for cell in cells), style="bold" if r.holm < ALPHA else None)
    return table


def _lines(*texts: str) -> Text:
    from rich.text import Text

    return Text("\n").join(map(for_terminal, texts))


def _ranking_line(ranking: Ranking) -> str:
    order = ", ".join(f"{place:g} {name}" for name, place in sorted(ranking.ranks.items(), key=lambda x: x[1]))
    stable = "" if ranking.kendall_tau is None else f"; tau {ranking.kendall_tau:.2f}"
    few = "" if ranking.cases >= FEWEST else f" ({ranking.cases} cases: too few to tell how stable that is)"
    return f"{ranking.scheme.replace('_', ' ')}: {order}{stable}{few}"


def draw_differences(found: Comparison) -> bytes:
    """PNG: mean difference and interval of every result, one panel for each metric; those that Holm keeps in blue."""
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(result.metric for result in found.results))
    most = max(sum(result.metric == metric for result in found.results) for metric in metrics)
    figure = Figure(figsize=(5.4 * len(metrics), 1.2 + 0.34 * most), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        shown = [result for result in found.results if result.metric == metric]
        for place, r in enumerate(reversed(shown)):
            colour = BLUE if r.holm < ALPHA else GREY
            if r.low is not None and r.high is not None:
                axes.plot([r.low, r.high], [place, place], color=colour, linewidth=2)
            axes.plot(r.difference, place, "o", color=colour)
        axes.axvline(0, color=RED, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(shown)), [_label(r) for r in reversed(shown)], fontsize=9)
        axes.set_title(f"difference of {for_figure(metric)}", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure)


def _label(result: PairedResult) -> str:
    return ": ".join((for_figure(result.name), " - ".join(map(for_figure, (result.b, result.a)))))


def _paths(cfg: Mapping[str, Any]) -> dict[str, str]:
    paths = {name: cfg[name] for name in ("a", "b") if cfg.get(name) is not None}
    for name, path in (cfg.get("methods") or {}).items():
        if str(name) in paths:
            raise UsageError(f"methods names '{name}' a second time", fix="choose another name")
        paths[str(name)] = path
    if len(paths) < 2:
        raise UsageError("there is nothing to compare", fix="give a=FOLDER b=FOLDER, or methods={name: folder, ...}")
    return paths
