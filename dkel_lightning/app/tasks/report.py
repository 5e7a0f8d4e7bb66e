"""task=report: one self-contained HTML page of a run, a sweep or a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dkel_lightning.app.report import of_groups, of_run
from dkel_lightning.app.runs import kinds
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.records import RunRecord


@dataclass(frozen=True)
class ReportResult:
    """What a report gave: what it is about, and the page."""

    kind: kinds.Kind
    file: Path


def report(run: Run) -> ReportResult:
    """Write report.html of `values["report"]["of"]`, by default of the newest run, into the run's folder.

    Raises:
        ConfigError: there is no run, sweep or comparison.
    """
    folder = kinds.find(run.values["report"]["of"])
    kind = kinds.kind(folder)
    assert kind is not None
    result = ReportResult(kind, write(folder, kind, run.folder))
    print(f"Report of the {kind} {folder}: {result.file}")
    return result


def write(folder: Path, kind: kinds.Kind, where: Path) -> Path:
    """Write the page of a folder into the folder `where`, to which its links are relative."""
    if kind == "run":
        return of_run.write(RunRecord(folder), where)
    return (of_groups.write_sweep if kind == "sweep" else of_groups.write_comparison)(folder, where)
