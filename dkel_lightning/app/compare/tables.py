"""The tables of a comparison: Markdown, CSV, a figure, and two tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dkel_lightning.app import figures
from dkel_lightning.app.compare.plan import Comparison
from dkel_lightning.app.loggers.metrics_file import write_whole
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.studies.seed_statistics import Paired, Sample, paired, sample


@dataclass(frozen=True)
class Outcome:
    """What one member gave: its figures by name, None for what it does not have; or why it failed."""

    figures: Mapping[str, float | None]
    message: str | None = None
    memory_of: str | None = None


Outcomes = Mapping[tuple[str, int], Outcome]


@dataclass(frozen=True)
class Column:
    """A figure of the table: how it is written; one that is chosen rather than measured has no deviation."""

    name: str
    scale: float
    digits: int
    unit: str = ""
    measured: bool = True

    def cell(self, summary: Sample | None) -> str:
        """Write mean and deviation."""
        if summary is None:
            return "n/a"
        mean = f"{summary.mean * self.scale:,.{self.digits}f}"
        if summary.deviation is None or not self.measured:
            return mean
        return f"{mean} ± {summary.deviation * self.scale:,.{self.digits}f}"

    @property
    def heading(self) -> str:
        """Name the column with its unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


COLUMNS = (
    Column("last accuracy", 100, 2, "%"),
    Column("selected accuracy", 100, 2, "%"),
    Column("NLL", 1, 4),
    Column("calibration error", 100, 2, "%"),
    Column("ensemble accuracy", 100, 2, "%"),
    Column("peer disagreement", 100, 2, "%"),
    Column("teacher distance", 1, 3),
    Column("epochs", 1, 0, measured=False),
    Column("images per second", 1, 0),
    Column("peak memory", 2**-20, 0, "MiB"),
    Column("parameters deployed", 1, 0, measured=False),
)
SHOWN = ("last accuracy", "selected accuracy", "NLL", "calibration error", "ensemble accuracy")
COMPARED = "selected accuracy"


def outcome(summary: Mapping[str, Any]) -> Outcome:
    """Read the figures of a member's summary.json: of the selected epoch where not said otherwise."""
    last = summary["test"]["last"]
    selected = summary["test"]["best"] or last
    deployed = selected["deployed"]
    kind = deployed.split("_")[0]
    of_peers = "student_ensemble" if kind == "ensemble" else f"{kind}_ensemble"
    ensemble = selected["accuracy"].get("ensemble", selected["accuracy"].get(of_peers))
    figures = {
        "last accuracy": last["deployed_accuracy"],
        "selected accuracy": selected["deployed_accuracy"],
        "NLL": selected["nll"][deployed],
        "calibration error": selected["calibration"][deployed],
        "ensemble accuracy": ensemble,
        "peer disagreement": selected["disagreement"],
        "teacher distance": selected["distance"],
        "epochs": last["epoch"],
        "images per second": summary["images_per_second"],
        "peak memory": summary["peak_memory"]["bytes"],
        "parameters deployed": summary["deployed_parameters"],
    }
    return Outcome(figures, memory_of=summary["peak_memory"]["of"])


# ---------------------------------------------------------------------- figures over the seeds


def _values(comparison: Comparison, outcomes: Outcomes, label: str, name: str) -> dict[int, float]:
    found = {}
    for seed in comparison.seeds:
        value = outcomes[label, seed].figures.get(name) if (label, seed) in outcomes else None
        if value is not None:
            found[seed] = value
    return found


def summaries(comparison: Comparison, outcomes: Outcomes, label: str) -> dict[str, Sample | None]:
    """Summarise each column of a label over its seeds; None where it has no values."""
    found = {column.name: _values(comparison, outcomes, label, column.name) for column in COLUMNS}
    return {name: sample([*values.values()]) if values else None for name, values in found.items()}


def differences(comparison: Comparison, outcomes: Outcomes) -> dict[str, Paired | None]:
    """Compare each label with the reference over the seeds that both have; None where there are none."""
    reference = _values(comparison, outcomes, comparison.reference, COMPARED)
    found: dict[str, Paired | None] = {}
    for variant in comparison.variants:
        if variant.label != comparison.reference:
            own = _values(comparison, outcomes, variant.label, COMPARED)
            seeds = [seed for seed in own if seed in reference]
            pairs = [own[seed] for seed in seeds], [reference[seed] for seed in seeds]
            found[variant.label] = paired(*pairs) if seeds else None
    return found


def _done(comparison: Comparison, outcomes: Outcomes, label: str) -> int:
    return len(_values(comparison, outcomes, label, COMPARED))


# ---------------------------------------------------------------------- files


def write(folder: Path, comparison: Comparison, outcomes: Outcomes, notes: Sequence[str]) -> None:
    """Write compare.md, compare.csv, members.csv and figures/compare.png."""
    write_text(folder / "compare.md", "\n".join(_markdown(comparison, outcomes, notes)) + "\n")
    write_whole(folder / "compare.csv", _csv(comparison, outcomes))
    write_whole(folder / "members.csv", _members_csv(outcomes))
    accuracies = {
        variant.label: [*_values(comparison, outcomes, variant.label, COMPARED).values()]
        for variant in comparison.variants
    }
    if any(accuracies.values()):
        figures.draw_comparison(accuracies, comparison.reference, folder / "figures" / "compare.png")


def _markdown(comparison: Comparison, outcomes: Outcomes, notes: Sequence[str]) -> list[str]:
    total = len(comparison.variants) * len(comparison.seeds)
    failures = {key: found.message for key, found in outcomes.items() if found.message is not None}
    state = f"{len(outcomes)} of {total} runs" if len(outcomes) < total else f"All {total} runs"
    memory = {found.memory_of for found in outcomes.values()} - {None}
    kinds = {"gpu": "tensors on the GPU", "process": "resident set of the process"}
    lines = ["# Comparison", "", f"{state}, {len(failures)} failed. Mean ± sample deviation over n seeds."]
    lines += ["", *(f"- {note}" for note in notes)]
    if memory:
        lines.append(f"- Peak memory: {', '.join(kinds[str(kind)] for kind in sorted(map(str, memory)))}.")
    lines += [f"- {label}, seed {seed}, failed: {message}" for (label, seed), message in failures.items()]
    heading = ["label", "n", *(column.heading for column in COLUMNS)]
    lines += ["", *markdown_rows(heading, _cells(comparison, outcomes, [column.name for column in COLUMNS]))]
    if len(comparison.variants) > 1:
        lines += ["", f"## {COMPARED.capitalize()} less that of {comparison.reference}, over the same seeds", ""]
        lines += markdown_rows(DIFFERENCE_HEADING, _difference_cells(comparison, outcomes))
    return lines


def markdown_rows(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a table: text in the first column, numbers in the others."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return [f"| {' | '.join(row)} |" for row in (heading, rule, *rows)]


def _cells(comparison: Comparison, outcomes: Outcomes, names: Sequence[str]) -> list[list[str]]:
    columns = [column for column in COLUMNS if column.name in names]
    rows = []
    for variant in comparison.variants:
        found = summaries(comparison, outcomes, variant.label)
        number = str(_done(comparison, outcomes, variant.label))
        rows.append([variant.label, number, *(column.cell(found[column.name]) for column in columns)])
    return rows


DIFFERENCE_HEADING = ["label", "n", "difference (points)", "95 % interval", "smallest detectable"]


def _difference_cells(comparison: Comparison, outcomes: Outcomes) -> list[list[str]]:
    return [difference_row(label, found) for label, found in differences(comparison, outcomes).items()]


def difference_row(label: str, found: Paired | None) -> list[str]:
    """Write a difference of accuracies in points, with what its pairs allow to say."""
    if found is None:
        return [label, "0", "n/a", "n/a", "n/a"]
    interval, detectable = "n/a", "n/a"
    if found.low is not None and found.high is not None and found.detectable is not None:
        interval = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        detectable = f"{100 * found.detectable:.2f}"
    return [label, str(found.n), f"{100 * found.mean:+.2f}", interval, detectable]


def _csv(comparison: Comparison, outcomes: Outcomes) -> list[list[str]]:
    heading = ["label", "n"]
    heading += [f"{column.name} {part}" for column in COLUMNS for part in ("mean", "deviation")]
    heading += [f"difference {part}" for part in ("n", "mean", "low", "high", "detectable")]
    compared = differences(comparison, outcomes)
    lines = [heading]
    for variant in comparison.variants:
        found = summaries(comparison, outcomes, variant.label)
        parts: list[Callable[[Sample], float | None]] = [lambda s: s.mean, lambda s: s.deviation]
        figures = [None if (s := found[c.name]) is None else part(s) for c in COLUMNS for part in parts]
        pair = compared.get(variant.label)
        difference = [None] * 5 if pair is None else [pair.n, pair.mean, pair.low, pair.high, pair.detectable]
        number = str(_done(comparison, outcomes, variant.label))
        lines.append([variant.label, number, *map(_plain, [*figures, *difference])])
    return lines


def _members_csv(outcomes: Outcomes) -> list[list[str]]:
    lines = [["label", "seed", "state", *(column.name for column in COLUMNS)]]
    for (label, seed), found in outcomes.items():
        state = "finished" if found.message is None else f"failed: {found.message}"
        lines.append([label, str(seed), state, *(_plain(found.figures.get(column.name)) for column in COLUMNS)])
    return lines


def _plain(value: float | None) -> str:
    return "" if value is None else repr(value)


# ---------------------------------------------------------------------- terminal


def show(comparison: Comparison, outcomes: Outcomes, console: Console | None = None) -> None:
    """Print the main columns, and the differences to the reference."""
    # Without a terminal rich takes 80 columns, too few for the table.
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    seeds = ", ".join(map(str, comparison.seeds))
    headings = ["label", "n", *(column.heading for column in COLUMNS if column.name in SHOWN)]
    console.print(terminal_table(f"Mean ± deviation over seeds {seeds}", headings, _cells(comparison, outcomes, SHOWN)))
    if len(comparison.variants) > 1:
        title = f"{COMPARED.capitalize()} less that of {comparison.reference}"
        console.print(terminal_table(title, DIFFERENCE_HEADING, _difference_cells(comparison, outcomes)))


def terminal_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Make a table for the terminal: text in the first column, numbers in the others."""
    table = Table(title=title, title_justify="left")
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
