"""The page of a sweep or of a comparison: groups of runs over their seeds, their curves, and each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dkel_lightning.app import figures, sweeps
from dkel_lightning.app.compare import tables
from dkel_lightning.app.config import schema
from dkel_lightning.app.report import page
from dkel_lightning.app.report.page import Link, Section, Table, on_test_set, percent, show
from dkel_lightning.app.runs import kinds
from dkel_lightning.app.runs.groups import COMPARED, Group, Sweep, is_seed, read_sweep
from dkel_lightning.app.runs.parsing import read_table, read_text
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.app.runs.settings import differences
from dkel_lightning.app.runs.tables import (
    COLUMNS,
    Column,
    difference_table,
    difference_title,
    group_table,
)

# ---------------------------------------------------------------------- a sweep


def write_sweep(folder: Path, where: Path) -> Path:
    """Write the page of a sweep, whatever state it is in, into the folder `where`."""
    sweep = read_sweep(folder)
    missing = _missing(sweep)
    done = sum(run.state == "finished" for run in sweep.jobs)
    data = dict.fromkeys(show(run.setting("data.name")) for run in sweep.jobs if run.config)
    varied = ", ".join(sweep.keys) or "the seed alone"
    subtitle = f"{done} of {len(sweep.jobs) + len(missing)} jobs finished. Varied: {varied}."
    warnings = [] if sweep.jobs else ["No job has written anything so far."]
    if missing:
        listed = ", ".join(map(str, missing))
        warnings.append(f"Jobs {listed} left no folder: they failed before they began.")
    searched = sweeps.is_search(sweep)
    best = sweep.best if len(sweep.groups) > 1 and not searched else None
    notes = [
        "Mean ± sample deviation over the n seeds that finished; test set, selected epoch.",
        *([sweeps.SEARCHED] if searched else _caution(best, sweep)),
    ]
    if sweep.constant:
        notes.append(f"In all jobs: {' '.join(sweep.constant)}")
    results = _results(sweep.groups, sweep.keys or ("setting",), COLUMNS, best)
    title = f"Sweep on {', '.join(data) or 'unknown data'}"
    drawn = sweeps.drawn(sweep)
    accuracies = figures.comparison(sweep.groups, best, {COMPARED: figures.FIGURES[COMPARED]})
    if accuracies is not None:
        drawn["accuracies"] = accuracies
    return page.write(where, title, subtitle, [*warnings, *_warnings(sweep.jobs)], (
        Section("Settings", notes, results), Section("Figures", figures=drawn),
        _runs(sweep.groups, sweep.keys, where), page.files(folder, where, 1),
    ))  # fmt: skip


def _missing(sweep: Sweep) -> list[int]:
    """Give the numbers of which no job has left a folder."""
    numbers = {int(run.name) for run in sweep.jobs if run.name.isdecimal()}
    return sorted(set(range(max(numbers, default=-1) + 1)) - numbers)


def _caution(best: Group | None, sweep: Sweep) -> Iterator[str]:
    if best is None:
        return
    yield (
        f"The marked setting has the highest mean of {len(sweep.groups)}. Chosen for that, its figure is too high, "
        "and so is every difference to it: settings whose interval holds 0 are not told apart."
    )
    if max(len(group.figures(COMPARED)) for group in sweep.groups) < 2:
        yield "With one seed a setting nothing tells a difference from the luck of the seed."


# ---------------------------------------------------------------------- a comparison


def write_comparison(folder: Path, where: Path) -> Path:
    """Write the page of a comparison, whatever state it is in, into the folder `where`."""
    groups, reference = read_comparison(folder)
    runs = [run for group in groups for run in group.runs.values()]
    text = read_text(folder / "compare.md")
    seeds = sorted({int(seed) for group in groups for seed in group.runs})
    subtitle = f"{len(groups)} labels, seeds {', '.join(map(str, seeds)) or 'unknown'}."
    subtitle += f" Compared to {reference.name}." if reference else ""
    warnings = [] if text is not None else ["No compare.md: no run of this comparison has ended."]
    notes = [line.removeprefix("- ") for line in (text or "").splitlines() if line and not line.startswith(("#", "|"))]
    return page.write(where, "Comparison", subtitle, [*warnings, *_warnings(runs)], (
        Section("Result", notes, _results(groups, ("label",), tables.COLUMNS, reference)),
        Section("Figures", figures=tables.drawn(groups, reference)), _runs(groups, ("label",), where),
        _differing(groups), page.files(folder, where),
    ))  # fmt: skip


def read_comparison(folder: Path) -> tuple[list[Group], Group | None]:
    """Read the runs of a comparison by label, in the order of its table, and the label the others are compared to."""
    summary = read_table(folder / "compare.csv")
    found: dict[str, dict[str, RunRecord]] = {row.get("label", ""): {} for row in summary}
    for label, seed, path in kinds.members(folder):
        found.setdefault(label, {})[str(seed)] = RunRecord(path, f"{label}, seed {seed}")
    groups = [Group(label, (label,), runs) for label, runs in found.items()]
    # The reference is the one label that has no difference to it.
    alone = [row.get("label", "") for row in summary if not row.get("difference n")]
    known = len(alone) == 1 and len(summary) > 1
    return groups, next((group for group in groups if known and group.name == alone[0]), None)


def _differing(groups: Sequence[Group]) -> Section:
    """Show the settings that are not the same for all labels."""
    found = ((group.name, next((run.config for run in group.runs.values() if run.config), {})) for group in groups)
    configs = {name: config for name, config in found if config}
    first, *others = configs.values() if configs else ({},)
    said = [line for config in others for line in differences(first, config)]
    apart = sorted({key for line in said if not is_seed(key := line.partition(":")[0])})
    settings = [dict(schema.leaves(config)) for config in configs.values()]
    rows = [[key, *(show(one[key]) if key in one else "" for one in settings)] for key in apart]
    note = f"{len(apart)} settings differ between the labels." if apart else "No settings differ, or none can be read."
    return Section("What differs", [note], [Table(["key", *configs], rows, len(configs) + 1)] if apart else [])


# ---------------------------------------------------------------------- both


def _results(
    groups: Sequence[Group], keys: Sequence[str], columns: Sequence[Column], reference: Group | None
) -> list[Table]:
    """Give means and deviations of all groups, and the paired differences to one of them."""
    marked = next((place for place, group in enumerate(groups) if group is reference), None)
    found = [Table(*group_table(keys, groups, columns), len(keys), marked)]
    if reference is not None and len(groups) > 1:
        title = f"{difference_title(reference.name, COMPARED)}, over the same seeds"
        found.append(Table(*difference_table(groups, reference), title=title))
    return found


def _warnings(runs: Sequence[RunRecord]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for run in runs:
        if run.failure is not None:
            reasons.setdefault(run.failure.split(". ")[0].rstrip("."), []).append(run.name)
    for reason, names in reasons.items():
        yield f"Failed: {'; '.join(names)} ({reason})."
    said: Mapping[str, list[RunRecord]] = {
        "Begun and not finished": [run for run in runs if run.state == "unfinished"],
        "Finished without test results": [run for run in runs if run.state == "finished" and not run.figures],
        "The collapse guard has reported a collapse (collapse.json)": [run for run in runs if run.collapse is not None],
        f"Epoch and peer were {page.ON_TEST_SET}, which biases the figures upwards": [*filter(on_test_set, runs)],
        "Finished without curves": [run for run in runs if run.figures and not run.curves],
    }
    for what, found in said.items():
        if found:
            yield f"{what}: {'; '.join(run.name for run in found)}."


def _runs(groups: Sequence[Group], keys: Sequence[str], where: Path) -> Section:
    heading = ["run", *keys, "seed", "state", "selected accuracy", "epoch", "last accuracy", "seconds"]
    rows = []
    for group in groups:
        for run in group.runs.values():
            epoch, seconds = run.figure("selected epoch"), run.figure("seconds")
            report = run.folder / kinds.PAGE
            collapsed = ", collapse" if run.collapse is not None and run.failure is None else ""
            rows.append(
                [
                    Link.to(report if report.is_file() else run.folder, where, run.name),
                    *group.values,
                    run.seed,
                    f"{run.state}{collapsed}",
                    percent(run.figure(COMPARED)),
                    "n/a" if epoch is None else epoch,
                    percent(run.figure("last deployed accuracy")),
                    "n/a" if seconds is None else f"{seconds:,.0f}",
                ]
            )
    return Section("Runs", tables=[Table(heading, rows, 3 + len(keys))])
