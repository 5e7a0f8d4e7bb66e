"""The page of a sweep: its settings grouped over seeds, their curves, and each job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dkel_lightning.app.report import charts, shared
from dkel_lightning.app.report.charts import Dots
from dkel_lightning.app.report.markup import Markup, dotted, items, join, page, section, table, tag
from dkel_lightning.app.report.shared import note, percent, show
from dkel_lightning.app.runs.groups import COMPARED, Group, Sweep
from dkel_lightning.app.runs.parsing import number
from dkel_lightning.app.runs.tables import COLUMNS, OBJECTIVE, group_rows, interval

FIRST = next(column for column in COLUMNS if column.name == COMPARED)
OTHERS = [
    column for column in COLUMNS if column.name.startswith("selected") and column.name not in (COMPARED, OBJECTIVE)
]


def write_page(sweep: Sweep, where: Path) -> str:
    """Write the page of a sweep that will lie in the folder `where`."""
    done = sum(bool(run.figures) for run in sweep.jobs)
    kinds = dict.fromkeys(show(run.setting("data.name")) for run in sweep.jobs if run.config)
    varied = ", ".join(sweep.keys) or "the seed alone"
    subtitle = f"{done} of {len(sweep.jobs) + len(_missing(sweep))} jobs finished. Varied: {varied}."
    opening = [items([*_warnings(sweep)], "warnings")]
    return page(f"Sweep on {', '.join(kinds) or 'unknown data'}", subtitle, opening, [*_sections(sweep, where)])


def _sections(sweep: Sweep, where: Path) -> Iterator[tuple[str, Markup]]:
    yield section("Settings", _settings_table(sweep), _caution(sweep), *_constant(sweep))
    yield section("Accuracy", charts.grid(_accuracy_charts(sweep)))
    yield section("Curves", *shared.overlay(sweep.groups))
    yield section("Jobs", _jobs_table(sweep, where))
    yield section("Files", shared.files(sweep.folder, where, 1))


def _missing(sweep: Sweep) -> list[int]:
    """Give the numbers of which no job has left a folder."""
    numbers = {int(run.name) for run in sweep.jobs if run.name.isdecimal()}
    return sorted(set(range(max(numbers, default=-1) + 1)) - numbers)


def _warnings(sweep: Sweep) -> Iterator[str]:
    if not sweep.jobs:
        yield "No job has written anything so far."
    if missing := _missing(sweep):
        yield f"Jobs {', '.join(map(str, missing))} left no folder: they failed before they began."
    reasons: dict[str, list[str]] = {}
    for run in sweep.jobs:
        if run.failure is not None:
            reasons.setdefault(run.failure.split(". ")[0].rstrip("."), []).append(run.name)
    for reason, names in reasons.items():
        yield f"Failed jobs: {', '.join(names)} ({reason})."
    unfinished = [run.name for run in sweep.jobs if not run.figures and run.failure is None]
    if unfinished:
        yield f"Jobs that have not finished: {', '.join(unfinished)}."
    collapsed = [run.name for run in sweep.jobs if run.collapse is not None]
    if collapsed:
        yield f"The collapse guard has reported a collapse in jobs {', '.join(collapsed)} (collapse.json)."
    if any(map(shared.on_test_set, sweep.jobs)):
        yield f"Epoch and peer of some jobs were {shared.ON_TEST_SET}: their figures are biased upwards."
    bare = [run.name for run in sweep.jobs if run.figures and not run.curves]
    if bare:
        yield f"Finished jobs without curves: {', '.join(bare)}."


# ---------------------------------------------------------------------- settings


def _headings(sweep: Sweep) -> list[Markup]:
    return [dotted(key) for key in sweep.keys]


def _settings_table(sweep: Sweep) -> Markup:
    best = sweep.best
    keys: list[object] = [*_headings(sweep)] or ["setting"]
    heading = [*keys, "n", FIRST.heading, "less the best (points)", "95 % interval", *(c.heading for c in OTHERS)]
    rows = []
    for group, row in zip(sweep.groups, group_rows(sweep.groups, [FIRST, *OTHERS]), strict=True):
        until = len(keys) + 2
        rows.append([*row[:until], *_less_the_best(sweep, group), *row[until:]])
    said = "Mean ± sample deviation over the n seeds that finished; test set, selected epoch."
    marked = [i for i, group in enumerate(sweep.groups) if group is best and len(sweep.groups) > 1]
    return join([note(said), table(heading, rows, marked=marked, text_columns=len(keys))])


def _less_the_best(sweep: Sweep, group: Group) -> list[str]:
    best = sweep.best
    if best is None or group is best:
        return ["best" if len(sweep.groups) > 1 and best is not None else "", ""]
    found = group.less(best)
    return ["n/a", "n/a"] if found is None else [f"{100 * found.mean:+.2f}", interval(found)]


def _caution(sweep: Sweep) -> Markup:
    if len(sweep.groups) < 2 or sweep.best is None:
        return Markup("")
    seeds = (
        "With one seed a setting nothing tells a difference from the luck of the seed."
        if max(len(group.figures(COMPARED)) for group in sweep.groups) < 2
        else "Intervals are paired over the seeds that both settings have, one by one (t); n/a where these differences "
        "are all equal or there is one."
    )
    return note(
        f"The marked setting has the highest mean of {len(sweep.groups)}. Chosen for that, its figure is too high, "
        f"and so is every difference to it: settings whose interval holds 0 are not told apart. {seeds}"
    )


def _constant(sweep: Sweep) -> list[Markup]:
    return [tag("p", "In all jobs: ", tag("code", " ".join(sweep.constant)), class_="note")] if sweep.constant else []


# ---------------------------------------------------------------------- charts


def _accuracy_charts(sweep: Sweep) -> list[Markup]:
    drawn = [_over(sweep, position) for position in range(len(sweep.keys)) if _is_numeric(sweep, position)]
    if len(sweep.groups) <= shared.DRAWN:
        marked = next((i for i, g in enumerate(sweep.groups) if g is sweep.best and len(sweep.groups) > 1), None)
        drawn.append(shared.accuracies({g.name: g.figures(COMPARED) for g in sweep.groups}, marked, ""))
    return drawn


def _is_numeric(sweep: Sweep, position: int) -> bool:
    values = {group.values[position] for group in sweep.groups}
    return len(values) > 1 and all(number(value) is not None for value in values)


def _over(sweep: Sweep, axis: int) -> Markup:
    """Draw the accuracy over one varied number, a line for each setting of the other keys."""
    series: dict[str, list[Dots]] = {}
    for group in sweep.groups:
        values = [(f"seed {seed}", 100 * value) for seed, value in group.figures(COMPARED).items()]
        dots = Dots(number(group.values[axis]) or 0.0, values)
        series.setdefault(sweep.name(group.values, axis), []).append(dots)
    remark = "%; dots: seeds, line: means"
    return charts.numeric_dots("test accuracy", [*series.items()], x_label=sweep.keys[axis], note=remark)


# ---------------------------------------------------------------------- jobs


def _jobs_table(sweep: Sweep, where: Path) -> Markup:
    heading = ["job", *_headings(sweep), "seed", "state", "selected accuracy", "epoch", "last accuracy", "seconds"]
    rows = []
    for run in sweep.jobs:
        epoch, seconds = run.figure("selected epoch"), run.figure("seconds")
        rows.append(
            [
                shared.job_link(run, where),
                *sweep.setting(run),
                run.seed,
                shared.ending(run),
                percent(run.figure(COMPARED)),
                "n/a" if epoch is None else epoch,
                percent(run.figure("last deployed accuracy")),
                "n/a" if seconds is None else f"{seconds:,.0f}",
            ]
        )
    return table(heading, rows, text_columns=3 + len(sweep.keys))
