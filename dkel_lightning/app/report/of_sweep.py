"""The page of a sweep: its settings grouped over seeds, their curves, and each job."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkel_lightning.app.report import charts, collect, folder_kind, of_run, panels
from dkel_lightning.app.report.charts import Dots, Line
from dkel_lightning.app.report.collect import RunRecord, Varied, number, show
from dkel_lightning.app.report.markup import Markup, dotted, items, join, link, page, section, table, tag
from dkel_lightning.studies import seed_statistics

DRAWN = 60
OWN_LEGEND = 4
"""Settings up to which every chart names them itself; of more, the names would take more room than the charts."""
"""Jobs whose curves are laid over one another; more are a thicket."""
OVERLAID: tuple[str, ...] = (
    "val/acc",
    "val/acc/student_mean",
    "val/acc/teacher_mean",
    "val/acc/ensemble",
    "val/nll/student_mean",
)
OVERLAID += ("train/loss", "train/acc/student_mean")


@dataclass(frozen=True)
class Setting:
    """The jobs that differ in their seeds alone.

    Attributes:
        values: of the varied keys, as text.
        jobs: their positions in the sweep.
    """

    name: str
    values: Sequence[str]
    jobs: Sequence[int]


@dataclass(frozen=True)
class SweepRecord:
    """The jobs of a sweep and what sets them apart."""

    folder: Path
    runs: Sequence[RunRecord]
    varied: Varied
    settings: Sequence[Setting]
    missing: Sequence[int] = ()

    def accuracies(self, setting: Setting) -> dict[str, float]:
        """Give the selected test accuracy of each finished job of a setting, by seed (and job, if a seed repeats)."""
        found: dict[str, float] = {}
        for job in setting.jobs:
            value = accuracy(self.runs[job])
            if value is not None:
                name = seed_of(self.runs[job])
                found[name if name not in found else f"{name}, job {self.runs[job].name}"] = value
        return found


def read_sweep(folder: Path) -> SweepRecord:
    """Read the jobs of a sweep, whatever state they are in."""
    runs = [collect.read_run(path) for path in folder_kind.jobs(folder)]
    numbers = {int(run.name) for run in runs if run.name.isdecimal()}
    missing = sorted(set(range(max(numbers, default=-1) + 1)) - numbers)
    return of_runs(folder, runs, collect.swept_keys(folder), missing)


def of_runs(folder: Path, runs: Sequence[RunRecord], named: Sequence[str], missing: Sequence[int]) -> SweepRecord:
    """Find what sets runs apart, and group those that differ in their seeds alone."""
    found = _by_overrides(runs) or collect.varied([run.config for run in runs], named)
    settings = []
    for values, jobs in collect.grouped(runs, lambda job: found.values[job]).items():
        name = _name(found.keys, values) or "all jobs"
        settings.append(Setting(name, values, jobs))
    return SweepRecord(folder, runs, found, settings, missing)


def _by_overrides(runs: Sequence[RunRecord]) -> Varied | None:
    """Take what was varied from the overrides of the jobs, where all have noted them."""
    given = [run.overrides for run in runs if run.overrides is not None]
    if not given or len(given) < len(runs):
        return None
    every = dict.fromkeys(key for one in given for key in one)
    keys = [key for key in every if collect.sets_apart(key) and len({one.get(key) for one in given}) > 1]
    return Varied(keys, [], [tuple(one.get(key, "") for key in keys) for one in given])


def short(key: str) -> str:
    """Name a key as it is given on the command line: a group by itself."""
    return key.removesuffix(".name")


def _name(keys: Sequence[str], values: Sequence[str], without: int | None = None) -> str:
    """Name a setting for a legend: by the last parts of its keys, where these are told apart."""
    last = [short(key).rsplit(".", 1)[-1] for key in keys]
    brief = [one if last.count(one) == 1 else short(key) for one, key in zip(last, keys, strict=True)]
    return ", ".join(f"{brief[i]}={value}" for i, value in enumerate(values) if i != without)


def accuracy(run: RunRecord) -> float | None:
    """Test accuracy of the deployed network at the selected epoch."""
    return run.selected.deployed_accuracy if run.selected is not None else None


def seed_of(run: RunRecord) -> str:
    """Name the seed of a run."""
    seed = run.setting("seed")
    return f"seed {show(run.summary.get('seed') if seed is None else seed)}"


# ---------------------------------------------------------------------- the page


def write_page(sweep: SweepRecord, where: Path) -> str:
    """Write the page of a sweep that will lie in the folder `where`."""
    done = sum(run.finished for run in sweep.runs)
    kinds = dict.fromkeys(show(run.setting("data.name")) for run in sweep.runs if run.config)
    varied = ", ".join(map(short, sweep.varied.keys)) or "the seed alone"
    subtitle = f"{done} of {len(sweep.runs) + len(sweep.missing)} jobs finished. Varied: {varied}."
    opening = [items([*_warnings(sweep)], "warnings")]
    return page(f"Sweep on {', '.join(kinds) or 'unknown data'}", subtitle, opening, [*_sections(sweep, where)])


def _sections(sweep: SweepRecord, where: Path) -> Iterator[tuple[str, Markup]]:
    yield section("Settings", _settings_table(sweep), _caution(sweep))
    yield section("Accuracy", charts.grid(_accuracy_charts(sweep)))
    names = [setting.name for setting in sweep.settings]
    which = {job: i for i, setting in enumerate(sweep.settings) for job in setting.jobs}
    yield section("Curves", *overlay(sweep.runs, which, names))
    yield section("Jobs", _jobs_table(sweep, where))
    yield section("Configuration", _common(sweep))
    yield section("Files", of_run.files(sweep.folder, where, 1))


def _warnings(sweep: SweepRecord) -> Iterator[str]:
    if not sweep.runs:
        yield "No job has written anything so far."
    if sweep.missing:
        yield f"Jobs {', '.join(map(str, sweep.missing))} left no folder: they failed before they began."
    reasons: dict[str, list[str]] = {}
    for run in sweep.runs:
        if run.failure is not None:
            reasons.setdefault(run.failure.split(". ")[0].rstrip("."), []).append(run.name)
    for reason, names in reasons.items():
        yield f"Failed jobs: {', '.join(names)} ({reason})."
    unfinished = [run.name for run in sweep.runs if not run.finished and run.failure is None]
    if unfinished:
        yield f"Jobs that have not finished: {', '.join(unfinished)}."
    collapsed = [run.name for run in sweep.runs if run.collapse is not None]
    if collapsed:
        yield f"The collapse guard has reported a collapse in jobs {', '.join(collapsed)} (collapse.json)."
    if any(of_run.on_test_set(run) for run in sweep.runs):
        yield (
            "Epoch and peer of some jobs were chosen on the test set (data.selection=paper): their figures are "
            "biased upwards."
        )
    if any(run.finished and not run.curves for run in sweep.runs):
        names = [run.name for run in sweep.runs if run.finished and not run.curves]
        yield f"Finished jobs without curves: {', '.join(names)}."


def best(sweep: SweepRecord) -> int | None:
    """Give the position of the setting with the highest mean, None where nothing finished."""
    means = {i: [*sweep.accuracies(setting).values()] for i, setting in enumerate(sweep.settings)}
    found = {i: seed_statistics.sample(values).mean for i, values in means.items() if values}
    return max(found, key=lambda i: found[i]) if found else None


def _settings_table(sweep: SweepRecord) -> Markup:
    first = best(sweep)
    heading: list[str] = [*_headings(sweep)] or ["setting"]
    text_columns = len(heading)
    heading += ["n", "selected accuracy (%)", "less the best (points)", "95 % interval"]
    heading += ["NLL", "ECE (%)", "student mean (%)", "teacher mean (%)", "ensemble (%)"]
    rows = []
    for i, setting in enumerate(sweep.settings):
        found = sweep.accuracies(setting)
        tests = [test for job in setting.jobs if (test := sweep.runs[job].selected) is not None]
        row = [*(setting.values or ["all jobs"]), str(len(found)), spread([*found.values()], 100, 2)]
        row += _less_the_best(sweep, i, first)
        row += [spread(_of_deployed([(t.nll, t.deployed) for t in tests]), 1, 4)]
        row += [spread(_of_deployed([(t.calibration, t.deployed) for t in tests]), 100, 2)]
        for member in ("student_mean", "teacher_mean", "ensemble"):
            row.append(spread([t.accuracy[member] for t in tests if member in t.accuracy], 100, 2))
        rows.append(row)
    note = "Mean ± sample deviation over the n seeds that finished; test set, selected epoch."
    marked = [] if first is None or len(sweep.settings) < 2 else [first]
    return join([tag("p", note, class_="note"), table(heading, rows, marked=marked, text_columns=text_columns)])


def _headings(sweep: SweepRecord) -> list[Markup]:
    return [dotted(short(key)) for key in sweep.varied.keys]


def _of_deployed(found: Sequence[tuple[Any, str | None]]) -> list[float]:
    return [figures[deployed] for figures, deployed in found if deployed in figures]


def spread(values: Sequence[float], scale: float, digits: int) -> str:
    """Write mean and sample deviation."""
    if not values:
        return "n/a"
    found = seed_statistics.sample(values)
    mean = f"{found.mean * scale:.{digits}f}"
    return mean if found.deviation is None else f"{mean} ± {found.deviation * scale:.{digits}f}"


def _less_the_best(sweep: SweepRecord, i: int, first: int | None) -> list[str]:
    if first is None or i == first:
        return ["best" if len(sweep.settings) > 1 and first is not None else "", ""]
    own, other = (sweep.accuracies(sweep.settings[k]) for k in (i, first))
    seeds = [seed for seed in own if seed in other]
    if not seeds:
        return ["n/a", "n/a"]
    found = seed_statistics.paired([own[seed] for seed in seeds], [other[seed] for seed in seeds])
    if found.low is None or found.high is None:
        return [f"{100 * found.mean:+.2f}", "n/a"]
    return [f"{100 * found.mean:+.2f}", f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"]


def _caution(sweep: SweepRecord) -> Markup:
    if len(sweep.settings) < 2 or best(sweep) is None:
        return Markup("")
    most = max(len(sweep.accuracies(setting)) for setting in sweep.settings)
    seeds = (
        "With one seed a setting nothing tells a difference from the luck of the seed."
        if most < 2
        else "Intervals are paired over the seeds that both settings have, one by one (t); n/a where these differences "
        "are all equal or there is one."
    )
    note = (
        f"The marked setting has the highest mean of {len(sweep.settings)}. Chosen for that, its figure is too high, "
        f"and so is every difference to it: settings whose interval holds 0 are not told apart. {seeds}"
    )
    following = ""
    if sweep.varied.following:
        shown = ", ".join(sweep.varied.following[:12])
        more = f" and {len(sweep.varied.following) - 12} more" if len(sweep.varied.following) > 12 else ""
        following = f"Settings that differ with these: {shown}{more}."
    return join(tag("p", said, class_="note") for said in (note, following) if said)


# ---------------------------------------------------------------------- charts


def _accuracy_charts(sweep: SweepRecord) -> list[Markup]:
    entries = [
        (setting.name, [(name, 100 * value) for name, value in sweep.accuracies(setting).items()])
        for setting in sweep.settings
    ]
    title, x_label = "test accuracy of the deployed network", "test accuracy, selected epoch (%)"
    drawn = []
    for axis in _numeric_keys(sweep):
        drawn.append(_over(sweep, axis))
    if len(entries) <= DRAWN:
        marked = best(sweep) if len(entries) > 1 else None
        drawn.append(
            charts.rows(title, entries, x_label=x_label, note="a dot a seed, a bar at the mean", marked=marked)
        )
    return drawn


def _numeric_keys(sweep: SweepRecord) -> list[int]:
    found = []
    for position in range(len(sweep.varied.keys)):
        values = {setting.values[position] for setting in sweep.settings}
        if len(values) > 1 and all(number(value) is not None for value in values):
            found.append(position)
    return found


def _over(sweep: SweepRecord, axis: int) -> Markup:
    """Draw the accuracy over one varied number, a line for each setting of the other keys."""
    series: dict[str, list[Dots]] = {}
    for setting in sweep.settings:
        name = _name(sweep.varied.keys, setting.values, axis)
        values = [(seed, 100 * value) for seed, value in sweep.accuracies(setting).items()]
        series.setdefault(name, []).append(Dots(number(setting.values[axis]) or 0.0, values))
    return charts.numeric_dots(
        "test accuracy", [*series.items()], x_label=short(sweep.varied.keys[axis]), note="%; dots: seeds, line: means"
    )


def overlay(runs: Sequence[RunRecord], which: dict[int, int], names: Sequence[str]) -> list[Markup]:
    """Lay the curves of runs over one another, one colour a setting."""
    shown = [job for job in which if runs[job].curves][:DRAWN]
    every = dict.fromkeys(itertools.chain.from_iterable(runs[job].curves for job in shown))
    metrics = [name for name in OVERLAID if name in every]
    means = ("student-teacher", "student-student")
    metrics += [name for name in every if name.startswith("diversity/") and name.rsplit("/", 1)[-1] in means]
    metrics += [name for name in every if "noise" in name.split("/")[:-1]]
    groups = {names[number]: number for number in sorted({which[job] for job in shown})}
    shared = len(groups) > OWN_LEGEND
    parts = [_overlaid(metric, runs, shown, which, names, legend=not shared) for metric in metrics]
    if not parts:
        return [tag("p", "No job has curves.", class_="note")]
    note = "One line a run, one colour a setting."
    if len(shown) < sum(bool(runs[job].curves) for job in which):
        note += f" The first {DRAWN} runs are drawn."
    legend = [charts.shared_legend(groups)] if shared else []
    return [tag("p", note, class_="note"), *legend, charts.grid(parts)]


def _overlaid(
    metric: str,
    runs: Sequence[RunRecord],
    shown: Sequence[int],
    which: dict[int, int],
    names: Sequence[str],
    *,
    legend: bool,
) -> Markup:
    panel = panels.panels([metric])[0]
    drawn = [
        Line(
            f"{names[which[job]]}, {seed_of(runs[job])}",
            curve.epochs,
            [panel.scale * value for value in curve.values],
            which[job],
            names[which[job]],
        )
        for job in shown
        if (curve := runs[job].curves.get(metric)) is not None
    ]
    label = next(iter(panel.columns))
    title = f"training loss, {label}" if panel.key == "train" else f"{panel.title}, {panels.spoken(label)}"
    note = "%" if panel.scale == 100 else panels.NOTES.get(panel.key, "")
    return charts.lines(title, drawn, note=note, legend=legend)


# ---------------------------------------------------------------------- jobs


def _jobs_table(sweep: SweepRecord, where: Path) -> Markup:
    heading = [
        "job",
        *_headings(sweep),
        "seed",
        "state",
        "selected accuracy",
        "epoch",
        "last accuracy",
        "seconds",
    ]
    rows = []
    for job, run in enumerate(sweep.runs):
        seconds = number(run.summary.get("seconds"))
        last = run.last.deployed_accuracy if run.last is not None else None
        selected = run.selected
        rows.append(
            [
                job_link(run, where),
                *map(show, sweep.varied.values[job]),
                seed_of(run).removeprefix("seed "),
                state(run),
                of_run.percent(accuracy(run)),
                "n/a" if selected is None or selected.epoch is None else str(selected.epoch),
                of_run.percent(last),
                "n/a" if seconds is None else f"{seconds:,.0f}",
            ]
        )
    return table(heading, rows, text_columns=3 + len(sweep.varied.keys))


def job_link(run: RunRecord, where: Path) -> Markup:
    """Link to a run's own report where there is one, else to its folder."""
    report = run.folder / folder_kind.PAGE
    return link(report if report.is_file() else run.folder, where, run.name)


def state(run: RunRecord) -> str:
    """Say in a word or two how a run ended."""
    if run.failure is not None:
        return "failed"
    said = "finished" if run.finished else "unfinished"
    return f"{said}, collapse" if run.collapse is not None else said


def _common(sweep: SweepRecord) -> Markup:
    whole = [run for run in sweep.runs if run.config]
    if not whole:
        return tag("p", "No job has settings that can be read.", class_="note")
    first = whole[0]
    rows = [
        [tag("code", key), show(value), show(default)]
        for key, value, default in of_run.changed(first)
        if all(collect.dig(run.config, *key.split(".")) == value for run in whole)
    ]
    note = "What all jobs share and what differs from the defaults:"
    details = tag("details", tag("summary", f"All settings of job {first.name}"), tag("pre", first.config_text))
    return join([tag("p", note, class_="note"), table(["key", "value", "default"], rows, text_columns=3), details])
