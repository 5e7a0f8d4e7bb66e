"""The page of a comparison: the tables that task=compare wrote, its figure, and the curves of its members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dkel_lightning.app.compare.tables import ACCURACY
from dkel_lightning.app.config import schema
from dkel_lightning.app.report import charts, shared
from dkel_lightning.app.report.markup import Markup, items, join, page, section, table, tag
from dkel_lightning.app.report.shared import note, percent, show
from dkel_lightning.app.runs import kinds
from dkel_lightning.app.runs.groups import Group, is_seed
from dkel_lightning.app.runs.parsing import number, read_table, read_text
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.app.tasks.compare import differences


@dataclass(frozen=True)
class Member:
    """One label with one seed; what is only in members.csv has no run."""

    label: str
    seed: int
    state: str
    accuracy: float | None
    run: RunRecord | None = None

    def __str__(self) -> str:
        return f"{self.label}, seed {self.seed}"


@dataclass(frozen=True)
class ComparisonRecord:
    """What a comparison's folder says.

    Attributes:
        text: compare.md, None where it is missing.
        summary: compare.csv, a row a label.
        reference: the label that the others are compared to, None where it is not known.
    """

    folder: Path
    members: Sequence[Member]
    text: str | None
    summary: Sequence[dict[str, str]]
    reference: str | None

    @property
    def labels(self) -> list[str]:
        """The labels in the order of the table."""
        return [*dict.fromkeys([*(row.get("label", "") for row in self.summary), *(m.label for m in self.members)])]

    @property
    def groups(self) -> list[Group]:
        """The runs by label and seed."""
        return [
            Group(label, (label,), {str(m.seed): m.run for m in self.members if m.label == label and m.run is not None})
            for label in self.labels
        ]


def read_comparison(folder: Path) -> ComparisonRecord:
    """Read a comparison, whatever state it is in."""
    found: dict[tuple[str, int], Member] = {}
    for row in read_table(folder / "members.csv"):
        seed = number(row.get("seed"))
        if seed is not None and seed == int(seed):
            key = row.get("label", ""), int(seed)
            found[key] = Member(*key, row.get("state", ""), number(row.get(ACCURACY)))
    for label, seed, path in kinds.members(folder):
        run = RunRecord(path, f"{label}, seed {seed}")
        known = found.get((label, seed)) or Member(label, seed, shared.ending(run), shared.accuracy(run))
        found[label, seed] = Member(label, seed, known.state, known.accuracy, run)
    summary = read_table(folder / "compare.csv")
    # The reference is the one label that has no difference to it.
    alone = [row.get("label", "") for row in summary if not row.get("difference n")]
    reference = alone[0] if len(alone) == 1 and len(summary) > 1 else None
    return ComparisonRecord(folder, [*found.values()], read_text(folder / "compare.md"), summary, reference)


def write_page(comparison: ComparisonRecord, where: Path) -> str:
    """Write the page of a comparison that will lie in the folder `where`."""
    seeds = sorted({member.seed for member in comparison.members})
    reference = f" Compared to {comparison.reference}." if comparison.reference else ""
    subtitle = f"{len(comparison.labels)} labels, seeds {', '.join(map(str, seeds)) or 'unknown'}.{reference}"
    opening = [items([*_warnings(comparison)], "warnings")]
    return page("Comparison", subtitle, opening, [*_sections(comparison, where)])


def _sections(comparison: ComparisonRecord, where: Path) -> Iterator[tuple[str, Markup]]:
    yield section("Result", *_result(comparison))
    yield section("Accuracy", charts.grid([_figure(comparison)]))
    yield section("Curves", *shared.overlay(comparison.groups))
    yield section("Runs", _runs(comparison, where))
    yield section("What differs", _differences(comparison))
    yield section("Files", shared.files(comparison.folder, where))


def _warnings(comparison: ComparisonRecord) -> Iterator[str]:
    if comparison.text is None and not comparison.summary:
        yield "No compare.md and no compare.csv: no run of this comparison has ended."
    failed = [f"{m} ({m.state})" for m in comparison.members if m.state.startswith("failed")]
    if failed:
        yield f"Failed: {'; '.join(failed)}."
    runs = [(member, member.run) for member in comparison.members if member.run is not None]
    begun = [str(member) for member, run in runs if not run.tested and "failed" not in member.state]
    if begun:
        yield f"Begun and not finished: {'; '.join(begun)}."
    collapsed = [str(member) for member, run in runs if run.collapse is not None]
    if collapsed:
        yield f"The collapse guard has reported a collapse (collapse.json): {'; '.join(collapsed)}."
    if any(shared.on_test_set(run) for _, run in runs):
        yield f"Epoch and peer were {shared.ON_TEST_SET}: the figures are biased upwards."


def _result(comparison: ComparisonRecord) -> list[Markup]:
    if comparison.text is not None:
        return [*_from_markdown(comparison.text)]
    if not comparison.summary:
        return [note("No table was written.")]
    heading = [*comparison.summary[0]]
    rows = [[_rounded(row.get(name, "")) for name in heading] for row in comparison.summary]
    said = "From compare.csv, as compare.md is missing: shares are not in percent, memory is in bytes."
    return [note(said), table(heading, rows)]


def _rounded(cell: str) -> str:
    value = number(cell)
    return cell if value is None else f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"


def _from_markdown(text: str) -> Iterator[Markup]:
    """Write the headings, lists and tables of compare.md; anything else is a paragraph."""
    notes: list[str] = []
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if notes and not line.startswith("- "):
            yield items(notes, "note")
            notes = []
        if rows and not line.startswith("|"):
            yield table(rows[0], [row for row in rows[1:] if not set("".join(row)) <= {"-", ":", " "}])
            rows = []
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif line.startswith("- "):
            notes.append(line[2:])
        elif line.startswith("## "):
            yield tag("h3", line[3:])
        elif line.strip() and not line.startswith("#"):
            yield tag("p", line)


def _figure(comparison: ComparisonRecord) -> Markup:
    found: dict[str, dict[str, float]] = {label: {} for label in comparison.labels}
    for member in comparison.members:
        if member.accuracy is not None:
            found[member.label][str(member.seed)] = member.accuracy
    marked = comparison.labels.index(comparison.reference) if comparison.reference else None
    return shared.accuracies(found, marked, "" if marked is None else "; dashed: the reference")


def _runs(comparison: ComparisonRecord, where: Path) -> Markup:
    rows = [
        [
            member.label if member.run is None else shared.job_link(member.run, where),
            str(member.seed),
            member.state,
            percent(member.accuracy),
            "n/a" if member.run is None else str(member.run.epochs_done),
        ]
        for member in comparison.members
    ]
    return table(["run", "seed", "state", "selected accuracy", "epochs"], rows, text_columns=3)


def _differences(comparison: ComparisonRecord) -> Markup:
    """Show the settings that are not the same for all labels."""
    first: dict[str, RunRecord] = {}
    for member in comparison.members:
        if member.run is not None and member.run.config:
            first.setdefault(member.label, member.run)
    configs = [run.config for run in first.values()]
    said = [line for config in configs[1:] for line in differences(configs[0], config)]
    apart = [key for key in dict.fromkeys(line.partition(":")[0] for line in said) if not is_seed(key)]
    if not apart:
        return note("No settings differ, or none can be read.")
    found = [dict(schema.leaves(config)) for config in configs]
    rows = [[tag("code", key), *(show(one[key]) if key in one else "" for one in found)] for key in sorted(apart)]
    listed = table(["key", *first], rows, text_columns=len(first) + 1)
    return join([tag("details", tag("summary", f"{len(apart)} settings differ between the labels"), listed)])
