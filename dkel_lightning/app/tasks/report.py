"""task=report: one self-contained HTML page of a run, a sweep or a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dkel_lightning.app.report import of_comparison, of_run, of_sweep
from dkel_lightning.app.runs import kinds
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.groups import read_sweep
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.runtime.atomic_files import write_text


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
    file = run.folder / kinds.PAGE
    write_text(file, page(folder, kind, run.folder))
    print(f"Report of the {kind} {folder}: {file}")
    return ReportResult(kind, file)


def page(folder: Path, kind: kinds.Kind, where: Path) -> str:
    """Write the page of a folder that will lie in the folder `where`, to which its links are relative."""
    if kind == "run":
        return of_run.write_page(RunRecord(folder), where)
    if kind == "sweep":
        return of_sweep.write_page(read_sweep(folder), where)
    return of_comparison.write_page(of_comparison.read_comparison(folder), where)
