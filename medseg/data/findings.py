"""What a check of a dataset found: one list, one table, one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medseg.text import for_terminal

Severity = Literal["error", "warning", "note"]
Repair = Literal["zero", "round", "grid"]
SEVERITIES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class Finding:
    """One fault or oddity.

    Attributes:
        severity: an error makes a case or a result unusable; a warning is probably a mistake; a note is good to know.
        problem: field, value and expectation.
        case: None for the dataset as a whole.
        file: the file at fault.
        fix: what the user can do.
        repair: what ``fix=true`` does: non-finite voxels to zero, labels rounded, the image's grid for this file.
    """

    severity: Severity
    problem: str
    case: str | None = None
    file: Path | None = None
    fix: str = ""
    repair: Repair | None = None


@dataclass(frozen=True)
class Findings:
    """All findings of a dataset, the worst first.

    Attributes:
        root: the dataset's folder; files are shown relative to it.
        cases: number of cases checked.
        repaired: folder with the repaired copy, if one was written.
        left_out: cases that could not be repaired.
    """

    dataset: str
    root: Path
    cases: int
    findings: tuple[Finding, ...]
    repaired: Path | None = None
    left_out: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """Number of findings of that severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def summary(self) -> str:
        """One line, e.g. ``"hippocampus: 200 cases, 1 error, no warnings, 2 notes"``."""
        counts = [_counted(self.count(severity), severity) for severity in SEVERITIES]
        lines = [f"{self.dataset}: {', '.join([_counted(self.cases, 'case'), *counts])}."]
        if self.repaired:
            out = f" without {_counted(len(self.left_out), 'case')} beyond repair ({', '.join(self.left_out)})"
            lines.append(f"Repaired copy in {self.repaired}{out if self.left_out else ''}.")
        return " ".join(lines)

    def print(self) -> None:
        """One table of all findings, if there are any, and the summary, to stdout."""
        from rich.console import Console
        from rich.table import Column, Table
        from rich.text import Text

        columns = (Column(name, overflow="fold") for name in ("case", "file", "problem", "fix"))  # nothing is cut off
        console, table = Console(), Table("", *columns, title=for_terminal(self.dataset), expand=False)
        for finding in self.findings:
            cells = (finding.case or "", self._relative(finding.file), finding.problem, finding.fix)
            table.add_row(Text(finding.severity, SEVERITIES[finding.severity]), *map(for_terminal, cells))
        if self.findings:
            console.print(table)
        console.print(for_terminal(self.summary), soft_wrap=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "dataset": self.dataset,
            "root": str(self.root),
            "cases": self.cases,
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "findings": [vars(finding) | {"file": self._relative(finding.file)} for finding in self.findings],
            "repaired": str(self.repaired) if self.repaired else None,
            "left_out": list(self.left_out),
        }

    def _relative(self, file: Path | None) -> str:
        if file is None:
            return ""
        return str(file.relative_to(self.root)) if file.is_relative_to(self.root) else str(file)


def ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors, warnings, notes; within each by case, those of the whole dataset first."""
    ranks = list(SEVERITIES)
    return tuple(sorted(findings, key=lambda f: (ranks.index(f.severity), f.case or "", str(f.file or ""))))


def _counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
