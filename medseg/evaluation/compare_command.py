"""``medseg compare``: evaluations of several methods in, tests, rankings and a picture out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.data.outputs import check_outputs, keep_account
from medseg.errors import BadDataset, UsageError
from medseg.evaluation.comparison import Comparison, compare
from medseg.evaluation.figures import BLUE, GREY, RED, to_png
from medseg.evaluation.ranking import SCHEMES, Ranking, rank
from medseg.evaluation.statistics import ALPHA, read_table
from medseg.io import atomic_path, write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

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

    Raises:
        BadDataset: there is none, or a column is missing.
        UnreadableFile: it is no table.
    """
    path = Path(path)
    files = [path] if path.is_file() else [path / "cases.csv", path / "evaluation" / "cases.csv"]
    for file in files:
        if file.is_file():
            return read_table(file, needed=("case", "class"))
    raise BadDataset("there is no cases.csv", path=path, fix="give a folder that medseg evaluate wrote")


def save(found: Comparison, rankings: Mapping[str, Sequence[Ranking]], output: Path) -> None:
    """Write comparison.json, comparison.csv and comparison.png into a folder.

    Raises:
        ResourceError: it cannot be written.
    """
    content = {
        "results": [asdict(result) for result in found.results],
        "rankings": {metric: [asdict(ranking) for ranking in several] for metric, several in rankings.items()},
        "unshared_cases": {name: list(cases) for name, cases in found.unshared.items()},
        "definitions": {
            "difference": "b - a, penalised values included; low and high: BCa bootstrap interval",
            "holm": "permutation p corrected by Holm over the classes and pairs of a metric",
        },
    }
    facts, table, picture = (output / name for name in COMPARISON_FILES)
    write_json(facts, content)
    write_text(table, found.frame.to_csv(index=False, lineterminator="\n"))
    with atomic_path(picture) as temporary:
        temporary.write_bytes(draw_differences(found))


def report(found: Comparison, rankings: Mapping[str, Sequence[Ranking]]) -> None:
    """Print the results, the rankings and the cases that took no part."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        "metric", "class", "a", "b", "n", "a mean", "b mean", "b - a", "interval", "p (Holm)", box=SIMPLE_HEAD
    )
    for r in found.results:
        interval = "–" if r.low is None else f"{r.low:+.4f} to {r.high:+.4f}"
        means = (f"{value:.4f}" for value in (r.mean_a, r.mean_b))
        style = "bold" if r.holm < ALPHA else None
        table.add_row(
            r.metric, r.name, r.a, r.b, str(r.n), *means, f"{r.difference:+.4f}", interval, f"{r.holm:.4f}", style=style
        )
    console.print(table)
    for metric, several in rankings.items():
        for ranking in several:
            order = ", ".join(f"{place:g} {name}" for name, place in sorted(ranking.ranks.items(), key=lambda x: x[1]))
            console.print(f"{metric}, {ranking.scheme.replace('_', ' ')}: {order}; tau {ranking.kendall_tau:.2f}")
    for name, cases in found.unshared.items():
        if cases:
            console.print(f"Only some methods have, left out of all ({name}): {', '.join(cases)}", style="yellow")


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
        axes.set_yticks(range(len(shown)), [f"{r.name}: {r.b} - {r.a}" for r in reversed(shown)], fontsize=9)
        axes.set_title(f"difference of {metric}", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure)


def _paths(cfg: Mapping[str, Any]) -> dict[str, str]:
    paths = {name: cfg[name] for name in ("a", "b") if cfg.get(name) is not None}
    for name, path in (cfg.get("methods") or {}).items():
        if str(name) in paths:
            raise UsageError(f"methods names '{name}' a second time", fix="choose another name")
        paths[str(name)] = path
    if len(paths) < 2:
        raise UsageError("there is nothing to compare", fix="give a=FOLDER b=FOLDER, or methods={name: folder, ...}")
    return paths
