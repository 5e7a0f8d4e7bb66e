"""task=report: one self-contained HTML page of a run, a sweep or a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dkel_lightning.app.report import folder_kind, of_comparison, of_run, of_sweep
from dkel_lightning.app.report.collect import read_run
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.runtime.atomic_files import write_text


@dataclass(frozen=True)
class ReportResult:
    """What a report gave: what it is about, and the page."""

    kind: folder_kind.Kind
    file: Path


def report(run: Run) -> ReportResult:
    """Write report.html of `values["report"]["of"]`, by default of the newest run, into the run's folder.

    Raises:
        ConfigError: there is no run, sweep or comparison.
    """
    folder = folder_kind.find(run.values["report"]["of"])
    kind = folder_kind.kind(folder)
    assert kind is not None
    file = run.folder / folder_kind.PAGE
    write_text(file, page(folder, kind, run.folder))
    print(f"Report of the {kind} {folder}: {file}")
    return ReportResult(kind, file)


def page(folder: Path, kind: folder_kind.Kind, where: Path) -> str:
    """Write the page of a folder that will lie in the folder `where`, to which its links are relative."""
    if kind == "run":
        return of_run.write_page(read_run(folder), where)
    if kind == "sweep":
        return of_sweep.write_page(of_sweep.read_sweep(folder), where)
    return of_comparison.write_page(of_comparison.read_comparison(folder), where)
