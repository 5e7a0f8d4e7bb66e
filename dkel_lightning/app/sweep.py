"""Summarise the runs of a multirun in tables and figures. Does not import torch.

The label of a run is what varies besides the seed. Labels are compared over their common seeds.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkel_lightning.app import figures
from dkel_lightning.app.records import CONFIG, FAILED, SUMMARY, Curve, RunRecord
from dkel_lightning.app.run import Run
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.tables import markdown_table, print_table, write_csv
from dkel_lightning.studies.seed_statistics import Paired, Sample, paired, sample

Settings = dict[str, str]
Score = Callable[[RunRecord], float | None]
NOT_KNOWN = "n/a"
DEFAULT = "default"
"""Label of runs whose names do not vary."""
MEMORY_OF = {"gpu": "tensors on the GPU", "process": "resident set of the process"}


# ---------------------------------------------------------------------- runs and their labels


def load_runs(folder: Path) -> list[RunRecord]:
    """Load every run below a folder, sorted by label and seed.

    A run is a folder with summary.json, failed.txt or config.yaml; its subfolders are not searched. The label comes
    from its name: `dkel/seed_0`, or overrides such as `method=dkel,seed=0`, without those that all runs share.
    """
    paths = [*_run_folders(folder)]
    if not paths:
        raise ConfigError(f"There is no run in {folder}: pass the folder of a sweep.")
    settings = [_settings_in(path.relative_to(folder).as_posix()) for path in paths]
    seeds = [one.pop("seed", "") for one in settings]
    keys = dict.fromkeys(key for one in settings for key in one)
    varied = [key for key in keys if len({one.get(key) for one in settings}) > 1]
    settings = [{key: one[key] for key in varied if key in one} for one in settings]
    pairs = {pair for one in settings for pair in one.items()}
    # Labels omit the key if the value alone is unambiguous.
    alone = max(map(len, settings)) < 2 and len({value for _, value in pairs}) == len(pairs)
    runs = []
    for path, seed, one in zip(paths, seeds, settings, strict=True):
        label = ", ".join(value if alone or not key else f"{key}={value}" for key, value in one.items())
        seed = str(RunRecord(path).summary.get("seed", seed))
        place = [(key not in one, _size(one.get(key, ""))) for key in varied]
        runs.append(((place, _size(seed)), RunRecord(path, label or DEFAULT, seed)))
    return [run for _, run in sorted(runs, key=lambda item: item[0])]


def _run_folders(folder: Path) -> Iterator[Path]:
    for place, inside, files in os.walk(folder):
        if Path(place) != folder and {SUMMARY, FAILED, CONFIG} & {*files}:
            inside.clear()  # stages of the run
            yield Path(place)
        inside[:] = sorted(name for name in inside if not name.startswith("."))


def _settings_in(name: str) -> Settings:
    """Parse a folder's name: `dkel/seed_0`, or overrides separated by commas."""
    if match := re.fullmatch(r"(?:(.*)/)?seed_(\d+)", name):
        return {"": match[1] or "", "seed": match[2]}
    pieces = re.split(r",(?=[\w.@/+~-]+=)", name)  # a comma inside of a value is not followed by a key
    pairs = (piece.partition("=") if "=" in piece else ("", "", piece) for piece in pieces)
    return {key.lstrip("+~"): value.strip("'\"") for key, _, value in pairs}


def _size(value: str) -> tuple[float, str]:
    """Return the sort key of a value: numbers by size, then words."""
    try:
        return float(value), value
    except ValueError:
        return math.inf, value


# ---------------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, how to read it from a run, and how to format it.

    Attributes:
        measured: whether to show the deviation over seeds.
    """

    name: str
    score: Score
    scale: float = 1
    digits: int = 0
    unit: str = ""
    measured: bool = True

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def cell(self, summary: Sample | None) -> str:
        """Format mean and sample deviation."""
        if summary is None:
            return NOT_KNOWN
        mean = f"{summary.mean * self.scale:,.{self.digits}f}"
        if summary.deviation is None or not self.measured:
            return mean
        return f"{mean} ± {summary.deviation * self.scale:,.{self.digits}f}"

    def difference(self, pairs: Paired | None) -> tuple[str, str]:
        """Format the mean of paired differences and its 95 % interval."""
        if pairs is None:
            return NOT_KNOWN, NOT_KNOWN
        mean, *ends = [
            f"{self.scale * value:+,.{self.digits}f}"
            for value in (pairs.mean, pairs.low, pairs.high)
            if value is not None
        ]
        return mean, " to ".join(ends) or NOT_KNOWN


def _selected(read: Callable[[Any], float | None]) -> Score:
    return lambda run: read(run.selected)


def _last(read: Callable[[Any], float | None]) -> Score:
    return lambda run: read(run.last)


ACCURACY = Column("selected accuracy", _selected(lambda test: test.deployed_accuracy), 100, 2, "%")
LAST = Column("last accuracy", _last(lambda test: test.deployed_accuracy), 100, 2, "%")
NLL = Column("NLL", _selected(lambda test: test.nll.get(test.deployed)), 1, 4)
CALIBRATION = Column("calibration error", _selected(lambda test: test.calibration.get(test.deployed)), 100, 2, "%")
ENSEMBLE = Column(
    "students' ensemble accuracy", _selected(lambda test: test.accuracy.get("student_ensemble")), 100, 2, "%"
)
DISAGREEMENT = Column("peer disagreement", _selected(lambda test: test.disagreement), 100, 2, "%")
COLUMNS = (
    *(LAST, ACCURACY, NLL, CALIBRATION, ENSEMBLE, DISAGREEMENT),
    Column("teacher distance", _selected(lambda test: test.distance), 1, 3),
    Column("epochs", _last(lambda test: test.epoch), measured=False),
    Column("images per second", lambda run: run.summary.get("images_per_second")),
    Column("seconds", lambda run: run.seconds),
    Column("peak memory", lambda run: run.summary.get("peak_memory", {}).get("bytes"), 2**-20, unit="MiB"),
    Column("parameters deployed", lambda run: run.summary.get("deployed_parameters"), measured=False),
)
PRINTED = (LAST, ACCURACY, NLL, CALIBRATION, ENSEMBLE)
PAIRED = (LAST, NLL, CALIBRATION, ENSEMBLE, DISAGREEMENT)
DRAWN = {
    ACCURACY: "accuracy of the deployed network (%)",
    ENSEMBLE: "accuracy of the students' ensemble (%)",
    DISAGREEMENT: "disagreement of the student peers (%)",
    NLL: "negative log-likelihood, deployed (nats)",
}


@dataclass(frozen=True)
class Group:
    """The runs of one label, by seed."""

    label: str
    runs: Mapping[str, RunRecord]

    def values(self, column: Column) -> dict[str, float]:
        """Return a score of the finished runs, by seed."""
        scores = {seed: column.score(run) for seed, run in self.runs.items() if run.state == "finished"}
        return {seed: score for seed, score in scores.items() if score is not None}

    def sample(self, column: Column) -> Sample | None:
        """Summarise a score over the seeds."""
        values = [*self.values(column).values()]
        return sample(values) if values else None

    def less(self, other: Group, column: Column) -> Paired | None:
        """Compare with another label over their common seeds; None without any."""
        mine, others = self.values(column), other.values(column)
        seeds = [seed for seed in mine if seed in others]
        return paired([mine[seed] for seed in seeds], [others[seed] for seed in seeds]) if seeds else None

    def curves(self, name: str) -> list[Curve]:
        """Return a column of metrics.csv for each finished run that has it."""
        return [run.curves[name] for run in self.runs.values() if run.state == "finished" and name in run.curves]


def _grouped(folder: Path, reference: str | None) -> tuple[list[Group], Group]:
    runs = load_runs(folder)
    known: dict[tuple[str, str], RunRecord] = {}
    for run in runs:
        if other := known.get((run.label, run.seed)):
            raise ConfigError(f"{other.folder} and {run.folder} are both {run.label}, seed {run.seed}: remove one.")
        known[run.label, run.seed] = run
    labels = [*dict.fromkeys(run.label for run in runs)]
    groups = [Group(label, {run.seed: run for run in runs if run.label == label}) for label in labels]
    if reference is not None and reference not in labels:
        raise ConfigError(f"sweep.reference={reference} is not a label in {folder}: choose one of {', '.join(labels)}.")
    return groups, groups[0 if reference is None else labels.index(reference)]


# ---------------------------------------------------------------------- files


def table(run: Run) -> None:
    """task=table: write the tables of `sweep.folder` again."""
    folder, reference = Path(run.values["sweep"]["folder"]), run.values["sweep"]["reference"]
    written = write_tables(folder, reference)
    print(f"Written to {folder}: {', '.join(written)}")


def write_tables(folder: Path, reference: str | None = None) -> list[str]:
    """Write sweep.md, sweep.csv, runs.csv and figures of the runs below a folder, and print the main columns.

    Args:
        folder: of the sweep.
        reference: label that the others are compared to; by default the first.

    Returns:
        The names of the files.
    """
    groups, base = _grouped(folder, reference)
    write_csv(folder / "runs.csv", _run_rows(groups))
    write_text(folder / "sweep.md", "\n".join(_markdown(groups, base)) + "\n")
    write_csv(folder / "sweep.csv", _rows(groups, base))
    print_table("Mean ± deviation over seeds", *_means(groups, PRINTED))
    if len(groups) > 1:
        print_table(_difference_title(base), *_differences(groups, base))
    return ["sweep.md", "sweep.csv", "runs.csv", *_draw(folder / "figures", groups, base)]


def _heading(groups: list[Group]) -> list[str]:
    runs = [run for group in groups for run in group.runs.values()]
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("finished", "failed", "unfinished") if s in states)
    seeds = [*dict.fromkeys(run.seed for run in runs)]
    lines = ["# Sweep", "", f"{len(runs)} runs: {counts}. Mean ± sample deviation over n seeds.", ""]
    lines.append(f"- Seeds: {', '.join(seeds)}.")
    if "paper" in {run.summary.get("selection") for run in runs}:
        lines.append("- Some runs selected epoch and network on the test set (`data.selection=paper`).")
    memory = {run.summary.get("peak_memory", {}).get("of") for run in runs}
    if kinds := [text for of, text in MEMORY_OF.items() if of in memory]:
        lines.append(f"- Peak memory: {', '.join(kinds)}.")
    lines += [f"- {run.label}, seed {run.seed}, failed: {run.message}" for run in runs if run.state == "failed"]
    return [*lines, ""]


def _markdown(groups: list[Group], base: Group) -> list[str]:
    lines = [*_heading(groups), *markdown_table(*_means(groups, COLUMNS))]
    others = [group for group in groups if group is not base]
    if others:
        lines += ["", f"## {_difference_title(base)}, over the same seeds", ""]
        lines += markdown_table(*_differences(groups, base))
        rows = [[group.label, *(_with_interval(group.less(base, c), c) for c in PAIRED)] for group in others]
        lines += ["", f"## Other figures less those of {base.label}: mean (95 % interval)", ""]
        lines += markdown_table(["label", *(column.heading for column in PAIRED)], rows)
    return lines


def _means(groups: list[Group], columns: tuple[Column, ...]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [group.label, str(len(group.values(ACCURACY))), *(column.cell(group.sample(column)) for column in columns)]
        for group in groups
    ]
    return ["label", "n", *(column.heading for column in columns)], rows


def _difference_title(base: Group) -> str:
    return f"Selected accuracy less that of {base.label}"


def _differences(groups: list[Group], base: Group) -> tuple[list[str], list[list[str]]]:
    rows = []
    for group in groups:
        if group is not base:
            pairs = group.less(base, ACCURACY)
            least = NOT_KNOWN if pairs is None or pairs.detectable is None else f"{100 * pairs.detectable:.2f}"
            rows.append([group.label, str(pairs.n if pairs else 0), *ACCURACY.difference(pairs), least])
    return ["label", "n", "difference (points)", "95 % interval", "smallest detectable"], rows


def _with_interval(pairs: Paired | None, column: Column) -> str:
    mean, interval = column.difference(pairs)
    return NOT_KNOWN if pairs is None else f"{mean} ({interval})"


def _rows(groups: list[Group], base: Group) -> Iterator[list[object]]:
    parts = [f"{column.name} {part}" for column in COLUMNS for part in ("mean", "deviation")]
    yield ["label", "n", *parts, *(f"difference {part}" for part in ("n", "mean", "low", "high", "detectable"))]
    for group in groups:
        samples = [group.sample(column) for column in COLUMNS]
        cells = [value for s in samples for value in ((None, None) if s is None else (s.mean, s.deviation))]
        pairs = None if group is base else group.less(base, ACCURACY)
        less: list[object] = [None if group is base else 0, None, None, None, None]
        if pairs is not None:
            less = [pairs.n, pairs.mean, pairs.low, pairs.high, pairs.detectable]
        yield [group.label, len(group.values(ACCURACY)), *cells, *less]


def _run_rows(groups: list[Group]) -> Iterator[list[object]]:
    yield ["label", "seed", "state", *(column.name for column in COLUMNS)]
    for group in groups:
        for seed, run in group.runs.items():
            state = f"failed: {run.message}" if run.state == "failed" else run.state
            scores = [column.score(run) if run.state == "finished" else None for column in COLUMNS]
            yield [group.label, seed, state, *scores]


def _draw(folder: Path, groups: list[Group], base: Group) -> list[str]:
    bars = {
        title: {group.label: [*group.values(column).values()] for group in groups} for column, title in DRAWN.items()
    }
    bars = {title: by_label for title, by_label in bars.items() if any(by_label.values())}
    curves = {
        title: {group.label: group.curves(name) for group in groups if group.curves(name)}
        for name, title in figures.SWEPT.items()
    }
    curves = {title: by_label for title, by_label in curves.items() if by_label}
    if bars:
        figures.draw_bars(bars, base.label, folder / "sweep.png")
    if curves:
        figures.draw_sweep_curves(curves, folder / "curves.png")
    return [*(["figures/sweep.png"] if bars else []), *(["figures/curves.png"] if curves else [])]
