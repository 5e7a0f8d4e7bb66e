"""The tables and figures that are made of the folders of a sweep's jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from matplotlib.figure import Figure

from dkel_lightning.app import drawing, figures
from dkel_lightning.app.runs.groups import COMPARED, Group, Sweep, has_collapsed
from dkel_lightning.app.runs.records import WRONG_LABELS, RunRecord
from dkel_lightning.app.runs.tables import (
    COLUMNS,
    OBJECTIVE,
    Column,
    difference_table,
    difference_title,
    group_table,
    markdown_table,
    print_table,
    write_csv,
)
from dkel_lightning.runtime import texts
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.studies.seed_statistics import wilson

SEARCHED = (
    "Chosen by the accuracy in validation. The highest of many is too high by luck; the test accuracy is not what "
    "was searched for."
)
NOISE_COLUMNS = tuple(Column(name, 100, 2, "%") for name in WRONG_LABELS)
SHOWN = ("last deployed accuracy", COMPARED, "selected peer disagreement", "selected NLL")
TABLED = (*figures.COURSES, "diversity/agreement/teacher-teacher", "diversity/distance/student-student")


# ---------------------------------------------------------------------- files


def write(sweep: Sweep) -> list[str]:
    """Write sweep.csv, sweep.md, curves.csv and the figures into the folder of the sweep, and return their names."""
    written = ["sweep.csv", "sweep.md"]
    write_csv(sweep.folder / "sweep.csv", _csv(sweep))
    write_text(sweep.folder / "sweep.md", "\n".join(_markdown(sweep)) + "\n")
    if not is_search(sweep) and (courses := [*_courses(sweep)]):
        write_csv(sweep.folder / "curves.csv", courses)
        written.append("curves.csv")
    also = next((job.setting("figures.also") for job in sweep.jobs), None) or ()
    paths = drawing.save_all(drawn(sweep), sweep.folder / "figures", also)
    return written + [f"figures/{path.name}" for path in paths]


def drawn(sweep: Sweep) -> dict[str, Figure]:
    """Draw what the jobs that have finished reached, by name; of a search nothing, whose settings have one job each."""
    if is_search(sweep):
        return {}
    shown = figures.FIGURES_COLLAPSED if any(map(has_collapsed, sweep.jobs)) else figures.FIGURES
    found = {
        "sweep": figures.sweep(sweep.finished, sweep.keys, shown),
        "curves": figures.courses(sweep.finished, sweep.keys),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _courses(sweep: Sweep) -> Iterator[list[str]]:
    """Write the course of each job: a row an epoch, under a heading; nothing where there is none."""
    names = [name for name in TABLED if any(name in job.curves for job in sweep.jobs)]
    if names:
        yield ["job", *sweep.varied, "epoch", *names]
    for job in sweep.jobs:
        by_epoch: dict[float, dict[str, float]] = {}
        for name in names:
            curve = job.curves.get(name)
            for epoch, value in zip(curve.epochs, curve.values, strict=True) if curve else ():
                by_epoch.setdefault(epoch, {})[name] = value
        for epoch, row in sorted(by_epoch.items()):
            cells = [f"{row[name]:.6g}" if name in row else "" for name in names]
            yield [job.name, *_own(sweep, job), str(int(epoch)), *cells]


def _own(sweep: Sweep, job: RunRecord) -> list[str]:
    return [(job.overrides or {}).get(key, "") for key in sweep.varied]


def _csv(sweep: Sweep) -> Iterator[list[object]]:
    names = [*dict.fromkeys(name for job in sweep.jobs for name in job.figures)]
    yield ["job", *sweep.varied, "state", "collapsed", *names, "message"]
    for job in sweep.jobs:
        values = [job.figures.get(name) for name in names]
        message = " ".join((job.message or "").split())
        yield [job.name, *_own(sweep, job), job.state, has_collapsed(job), *values, message]


def _markdown(sweep: Sweep) -> list[str]:
    states = [job.state for job in sweep.jobs]
    counted = [f"{states.count(state)} {state}" for state in ("finished", "failed", "unfinished") if state in states]
    lines = ["# Sweep", "", f"{len(states)} jobs: {', '.join(counted)}. Mean ± sample deviation over n seeds."]
    if sweep.constant:
        lines += ["", f"In all jobs: {', '.join(f'`{override}`' for override in sweep.constant)}."]
    failed = (f"Job {job.name} ({_named(sweep, job)}) failed: {job.failure}" for job in sweep.jobs if job.failure)
    failures = [f"- {texts.markdown(line)}" for line in failed]
    lines += ["", *failures, ""]
    if is_search(sweep):
        return lines + _search_lines(sweep)
    noisy = [column for column in NOISE_COLUMNS if any(column.name in job.figures for job in sweep.jobs)]
    lines += markdown_table(*group_table(sweep.keys or ("setting",), sweep.groups, (*COLUMNS, *noisy)))
    settings = [_in_full(sweep, group) for group in sweep.finished]
    if len(settings) > 1:
        lines += ["", f"## {difference_title(settings[0].name, COMPARED)}, over the same seeds", ""]
        lines += markdown_table(*difference_table(settings, settings[0]))
    if any(map(has_collapsed, sweep.jobs)):
        lines += ["", "## Collapsed by its outcome: non-finite, or at chance after the last epoch", ""]
        rows = [_collapse_row(_in_full(sweep, group)) for group in sweep.groups]
        lines += markdown_table(["label", "collapsed", "of", "share", "95 % Wilson interval"], rows)
    return lines


def _in_full(sweep: Sweep, group: Group) -> Group:
    """Name a setting by whole keys."""
    named = ", ".join(f"{key}={value}" for key, value in zip(sweep.keys, group.values, strict=True))
    return replace(group, name=named or "all")


def _named(sweep: Sweep, job: RunRecord) -> str:
    pairs = zip(sweep.varied, _own(sweep, job), strict=True)
    return ", ".join(f"{key}={value}" for key, value in pairs if value or key in sweep.keys)


def _collapse_row(group: Group) -> list[str]:
    count, known = group.collapses
    cells = ["n/a", "n/a"]
    if known:
        low, high = wilson(count, known)
        cells = [f"{100 * count / known:.0f} %", f"{100 * low:.0f} to {100 * high:.0f} %"]
    return [group.name, str(count), str(known), *cells]


# ---------------------------------------------------------------------- searches


def is_search(sweep: Sweep) -> bool:
    """Tell whether a search chose the settings: each is then one of many, and their mean over seeds means nothing.

    Its jobs say so from their start: what Optuna writes at its end an interrupted search lacks.
    """
    return any(job.job.get("search") is True for job in sweep.jobs)


def best_first(sweep: Sweep) -> list[tuple[RunRecord, float]]:
    """Give the finished jobs of a search with the validation accuracy that it maximises, in percent."""
    known = [(job, 100 * value) for job in sweep.jobs if (value := job.figures.get(OBJECTIVE)) is not None]
    return sorted(known, key=lambda item: -item[1])


def _search_lines(sweep: Sweep) -> list[str]:
    rows = []
    for job, value in best_first(sweep):
        test = job.figures.get(COMPARED)
        values = map(_short, sweep.setting(job))
        rows.append([job.name, *values, f"{value:.2f}", "n/a" if test is None else f"{100 * test:.2f}"])
    return [
        "## Search, best first",
        "",
        SEARCHED,
        "",
        *markdown_table(["job", *sweep.keys, "validation accuracy (%)", "test accuracy (%)"], rows),
    ]


def _short(value: str) -> str:
    """Shorten a number of many digits, as a search proposes them."""
    try:
        return value if len(value) <= 8 else f"{float(value):.4g}"
    except ValueError:
        return value


def show(sweep: Sweep) -> None:
    """Print the main columns, a row a setting."""
    if is_search(sweep):
        rows = [[job.name, *map(_short, sweep.setting(job)), f"{value:.2f}"] for job, value in best_first(sweep)[:10]]
        print_table("The best of the search", ["job", *sweep.keys, "validation accuracy (%)"], rows)
        return
    columns = [column for column in COLUMNS if column.name in SHOWN]
    print_table("Mean ± deviation over seeds", *group_table(sweep.keys or ("setting",), sweep.groups, columns))
