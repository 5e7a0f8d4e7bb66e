"""The tables of a comparison: Markdown, CSV, a figure, and two tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dkel_lightning.app import drawing, figures
from dkel_lightning.app.compare.plan import Comparison
from dkel_lightning.app.runs.groups import COMPARED, Group
from dkel_lightning.app.runs.records import MEMORY_OF, RunRecord
from dkel_lightning.app.runs.tables import (
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
from dkel_lightning.settings.declarations import at

Outcomes = Mapping[tuple[str, int], RunRecord]
"""What has ended so far, by label and seed."""

ACCURACY = "selected accuracy"
COLUMNS = (
    Column("last accuracy", 100, 2, "%", figure="last deployed accuracy"),
    Column(ACCURACY, 100, 2, "%", figure=COMPARED),
    Column("NLL", 1, 4, figure="selected NLL"),
    Column("calibration error", 100, 2, "%", figure="selected calibration error"),
    Column("students' ensemble accuracy", 100, 2, "%", figure="selected students' ensemble accuracy"),
    Column("peer disagreement", 100, 2, "%", figure="selected peer disagreement"),
    Column("teacher distance", 1, 3, figure="selected teacher distance"),
    Column("epochs", 1, 0, measured=False, figure="last epoch"),
    Column("images per second", 1, 0),
    Column("seconds", 1, 0),
    Column("peak memory", 2**-20, 0, "MiB"),
    Column("parameters deployed", 1, 0, measured=False),
)
SHOWN = ("last accuracy", ACCURACY, "NLL", "calibration error", "students' ensemble accuracy")
PAIRED = ("last accuracy", "NLL", "calibration error", "students' ensemble accuracy", "peer disagreement")
"""What is compared over the same seeds beside the selected accuracy."""


def groups(comparison: Comparison, outcomes: Outcomes) -> dict[str, Group]:
    """Give what has ended by label, in the order of the table."""
    return {
        label: Group(label, (label,), {str(s): outcomes[label, s] for s in comparison.seeds if (label, s) in outcomes})
        for label in (variant.label for variant in comparison.variants)
    }


# ---------------------------------------------------------------------- files


def write(
    folder: Path, comparison: Comparison, outcomes: Outcomes, notes: Sequence[str], also: Sequence[str] = ()
) -> None:
    """Write compare.md, compare.csv, members.csv and the figures, in other forms too."""
    write_text(folder / "compare.md", "\n".join(markdown(comparison, outcomes, notes)) + "\n")
    write_csv(folder / "compare.csv", _csv(comparison, outcomes))
    write_csv(folder / "members.csv", _members_csv(outcomes))
    found = groups(comparison, outcomes)
    drawing.save_all(drawn([*found.values()], found[comparison.reference]), folder / "figures", also)


def drawn(groups: Sequence[Group], reference: Group | None) -> dict[str, Figure]:
    """Draw what the labels reached, and how, by name; nothing where no run has finished."""
    found = {"compare": figures.comparison(groups, reference), "curves": figures.courses(groups, ("label",))}
    return {name: figure for name, figure in found.items() if figure is not None}


def markdown(comparison: Comparison, outcomes: Outcomes, notes: Sequence[str]) -> list[str]:
    """Write compare.md."""
    total = len(comparison.variants) * len(comparison.seeds)
    failures = {key: run.failure for key, run in outcomes.items() if run.failure is not None}
    state = f"{len(outcomes)} of {total} runs" if len(outcomes) < total else f"All {total} runs"
    memory = {str(at(run.summary, "peak_memory.of")) for run in outcomes.values() if run.figures} & {*MEMORY_OF}
    lines = ["# Comparison", "", f"{state}, {len(failures)} failed. Mean ± sample deviation over n seeds."]
    lines += ["", *(f"- {note}" for note in notes)]
    if memory:
        lines.append(f"- Peak memory: {', '.join(MEMORY_OF[kind] for kind in sorted(memory))}.")
    failed = (f"{label}, seed {seed}, failed: {message}" for (label, seed), message in failures.items())
    lines += [f"- {texts.markdown(line)}" for line in failed]
    found = groups(comparison, outcomes)
    lines += ["", *markdown_table(*group_table(["label"], found.values(), COLUMNS))]
    if len(found) > 1:
        lines += ["", f"## {difference_title(comparison.reference, ACCURACY)}, over the same seeds", ""]
        reference = found[comparison.reference]
        lines += markdown_table(*difference_table(found.values(), reference))
        columns = [column for column in COLUMNS if column.name in PAIRED]
        rows = [
            [label, *(column.difference(group.less(reference, column.of)) for column in columns)]
            for label, group in found.items()
            if group is not reference
        ]
        lines += ["", f"## Other figures less those of {reference.name}: mean (95 % interval)", ""]
        lines += markdown_table(["label", *(column.heading for column in columns)], rows)
    return lines


def _csv(comparison: Comparison, outcomes: Outcomes) -> Iterator[list[object]]:
    parts = [f"{column.name} {part}" for column in COLUMNS for part in ("mean", "deviation")]
    yield ["label", "n", *parts, *(f"difference {part}" for part in ("n", "mean", "low", "high", "detectable"))]
    found = groups(comparison, outcomes)
    reference = found[comparison.reference]
    for label, group in found.items():
        samples = [group.sample(column.of) for column in COLUMNS]
        cells = [value for s in samples for value in ((None, None) if s is None else (s.mean, s.deviation))]
        pair = None if group is reference else group.less(reference)
        # The reference alone has no number of pairs: a label without a seed in common has none, which is 0.
        less: list[object] = [None if group is reference else 0, None, None, None, None]
        if pair is not None:
            less = [pair.n, pair.mean, pair.low, pair.high, pair.detectable]
        yield [label, len(group.figures(COMPARED)), *cells, *less]


def _members_csv(outcomes: Outcomes) -> Iterator[list[object]]:
    yield ["label", "seed", "state", *(column.name for column in COLUMNS)]
    for (label, seed), run in outcomes.items():
        state = "finished" if run.failure is None else f"failed: {run.failure}"
        yield [label, seed, state, *(run.figure(column.of) for column in COLUMNS)]


# ---------------------------------------------------------------------- terminal


def show(comparison: Comparison, outcomes: Outcomes) -> None:
    """Print the main columns, and the differences to the reference."""
    found = groups(comparison, outcomes)
    columns = [column for column in COLUMNS if column.name in SHOWN]
    seeds = ", ".join(map(str, comparison.seeds))
    print_table(f"Mean ± deviation over seeds {seeds}", *group_table(["label"], found.values(), columns))
    if len(found) > 1:
        differences = difference_table(found.values(), found[comparison.reference])
        print_table(difference_title(comparison.reference, ACCURACY), *differences)
