"""What the pages of runs, sweeps and comparisons have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dkel_lightning.app.report import charts, panels
from dkel_lightning.app.report.charts import Line
from dkel_lightning.app.report.markup import Markup, join, link, table, tag
from dkel_lightning.app.runs.groups import Group
from dkel_lightning.app.runs.kinds import PAGE
from dkel_lightning.app.runs.records import RunRecord

LISTED = 200
DRAWN = 60
"""Jobs whose curves are laid over one another; more are a thicket."""
OWN_LEGEND = 4
"""Settings up to which every chart names them itself; of more, the names would take more room than the charts."""
OVERLAID = (
    *("val/acc", "val/acc/student_mean", "val/acc/teacher_mean", "val/acc/ensemble", "val/nll/student_mean"),
    *("train/loss", "train/acc/student_mean"),
)
ON_TEST_SET = "chosen on the test set (data.selection=paper)"


def note(said: str) -> Markup:
    """Write a remark."""
    return tag("p", said, class_="note")


def percent(value: float | None) -> str:
    """Write a share in percent."""
    return "n/a" if value is None else f"{100 * value:.2f} %"


def show(value: Any) -> str:
    """Write a setting as YAML would."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def on_test_set(run: RunRecord) -> bool:
    """Whether the test set chose epoch and peer."""
    return "paper" in (run.setting("data.selection"), run.summary.get("selection"))


def ending(run: RunRecord) -> str:
    """Say in a word or two how a run ended."""
    return f"{run.state}, collapse" if run.collapse is not None and run.failure is None else run.state


def job_link(run: RunRecord, where: Path) -> Markup:
    """Link to a run's own report where there is one, else to its folder."""
    report = run.folder / PAGE
    return link(report if report.is_file() else run.folder, where, run.name)


def accuracies(groups: Mapping[str, Mapping[str, float]], marked: int | None, remark: str) -> Markup:
    """Draw accuracies by group and seed: a row a group."""
    entries = [(name, [(f"seed {seed}", 100 * v) for seed, v in found.items()]) for name, found in groups.items()]
    title, x_label = "test accuracy of the deployed network", "test accuracy, selected epoch (%)"
    return charts.rows(title, entries, x_label=x_label, note=f"a dot a seed, a bar at the mean{remark}", marked=marked)


# ---------------------------------------------------------------------- curves of several runs


def overlay(groups: Sequence[Group]) -> list[Markup]:
    """Lay the curves of runs over one another, one colour a group."""
    runs = [(i, seed, run) for i, group in enumerate(groups) for seed, run in group.runs.items() if run.curves]
    shown = runs[:DRAWN]
    every = dict.fromkeys(name for _, _, run in shown for name in run.curves)
    metrics = [name for name in OVERLAID if name in every]
    means = ("student-teacher", "student-student")
    metrics += [name for name in every if name.startswith("diversity/") and name.rsplit("/", 1)[-1] in means]
    metrics += [name for name in every if "noise" in name.split("/")[:-1]]
    if not metrics:
        return [note("No job has curves.")]
    names = {groups[i].name: i for i, _, _ in shown}
    shared = len(names) > OWN_LEGEND
    parts = []
    for metric in metrics:
        title, remark, scale = panels.alone(metric)
        drawn = [
            Line(f"{groups[i].name}, seed {seed}", curve.epochs, [scale * v for v in curve.values], i, groups[i].name)
            for i, seed, run in shown
            if (curve := run.curves.get(metric)) is not None
        ]
        parts.append(charts.lines(title, drawn, note=remark, legend=not shared))
    said = "One line a run, one colour a setting."
    said += f" The first {DRAWN} runs are drawn." if len(shown) < len(runs) else ""
    return [note(said), *([charts.shared_legend(names)] if shared else []), charts.grid(parts)]


# ---------------------------------------------------------------------- files


def files(folder: Path, where: Path, depth: int = 2) -> Markup:
    """List the files of a folder as links relative to the page: no hidden ones, and figures at any depth."""
    found = [*_walk(folder, depth)]
    rows = [[link(p, where, p.relative_to(folder)), _size(p.stat().st_size)] for p in found[:LISTED]]
    more = [note(f"Only the first {LISTED} files are listed.")] if len(found) > LISTED else []
    return join([table(["file", "size"], rows), *more])


def _walk(where: Path, left: int) -> Iterator[Path]:
    try:
        entries = sorted(where.iterdir(), key=lambda path: (path.is_dir(), path.name))
    except OSError:
        return
    for path in entries:
        if path.name.startswith(".") or path.name == PAGE:
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and (left > 1 or path.name == "figures") and not path.is_symlink():
            yield from _walk(path, left - 1)


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
