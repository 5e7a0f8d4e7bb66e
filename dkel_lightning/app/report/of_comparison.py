"""The page of a comparison: the tables that task=compare wrote, its figure, and the curves of its members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dkel_lightning.app.report import charts, collect, folder_kind, of_run, of_sweep
from dkel_lightning.app.report.collect import RunRecord, number
from dkel_lightning.app.report.markup import Markup, items, join, page, section, table, tag

COMPARED = "selected accuracy"


@dataclass(frozen=True)
class Member:
    """One label with one seed; what is only in members.csv has no run."""

    label: str
    seed: int
    state: str
    accuracy: float | None
    run: RunRecord | None = None


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


def read_comparison(folder: Path) -> ComparisonRecord:
    """Read a comparison, whatever state it is in."""
    found: dict[tuple[str, int], Member] = {}
    for row in collect.read_table(folder / "members.csv"):
        seed = number(row.get("seed"))
        if seed is not None and seed == int(seed):
            key = (row.get("label", ""), int(seed))
            found[key] = Member(*key, row.get("state", ""), number(row.get(COMPARED)))
    for label, seed, path in folder_kind.members(folder):
        run = collect.read_run(path, f"{label}, seed {seed}")
        known = found.get((label, seed))
        state = known.state if known is not None else of_sweep.state(run)
        figure = known.accuracy if known is not None else of_sweep.accuracy(run)
        found[label, seed] = Member(label, seed, state, figure, run)
    summary = collect.read_table(folder / "compare.csv")
    # The reference is the one label that has no difference to it.
    alone = [row.get("label", "") for row in summary if not row.get("difference n")]
    text = collect.text_of(folder / "compare.md")
    reference = alone[0] if len(alone) == 1 and len(summary) > 1 else None
    return ComparisonRecord(folder, [*found.values()], text, summary, reference)


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
    runs = [member.run for member in comparison.members if member.run is not None]
    if runs:
        labels = comparison.labels
        own = [member for member in comparison.members if member.run is not None]
        which = {i: labels.index(member.label) for i, member in enumerate(own)}
        ordered = dict(sorted(which.items(), key=lambda item: item[1]))
        yield section("Curves", *of_sweep.overlay(runs, ordered, labels))
    yield section("Runs", _runs(comparison, where))
    if runs:
        yield section("What differs", _differences(comparison))
    yield section("Files", of_run.files(comparison.folder, where))


def _warnings(comparison: ComparisonRecord) -> Iterator[str]:
    if comparison.text is None and not comparison.summary:
        yield "No compare.md and no compare.csv: no run of this comparison has ended."
    failed = [f"{m.label}, seed {m.seed} ({m.state})" for m in comparison.members if m.state.startswith("failed")]
    if failed:
        yield f"Failed: {'; '.join(failed)}."
    open_ones = [m for m in comparison.members if m.run is not None and not m.run.finished and "failed" not in m.state]
    if open_ones:
        yield f"Begun and not finished: {', '.join(f'{m.label}, seed {m.seed}' for m in open_ones)}."
    if any(m.run is not None and m.run.collapse is not None for m in comparison.members):
        names = [f"{m.label}, seed {m.seed}" for m in comparison.members if m.run and m.run.collapse is not None]
        yield f"The collapse guard has reported a collapse (collapse.json): {'; '.join(names)}."
    if any(m.run is not None and of_run.on_test_set(m.run) for m in comparison.members):
        yield "Epoch and peer were chosen on the test set (data.selection=paper): the figures are biased upwards."


def _result(comparison: ComparisonRecord) -> list[Markup]:
    if comparison.text is not None:
        return [*from_markdown(comparison.text)]
    if not comparison.summary:
        return [tag("p", "No table was written.", class_="note")]
    heading = [*comparison.summary[0]]
    rows = [[_rounded(row.get(name, "")) for name in heading] for row in comparison.summary]
    note = "From compare.csv, as compare.md is missing: shares are not in percent, memory is in bytes."
    return [tag("p", note, class_="note"), table(heading, rows)]


def _rounded(cell: str) -> str:
    value = number(cell)
    return cell if value is None else f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"


def from_markdown(text: str) -> Iterator[Markup]:
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
    entries = [
        (
            label,
            [
                (f"seed {m.seed}", 100 * m.accuracy)
                for m in comparison.members
                if m.label == label and m.accuracy is not None
            ],
        )
        for label in comparison.labels
    ]
    marked = comparison.labels.index(comparison.reference) if comparison.reference else None
    note = "a dot a seed, a bar at the mean" + ("; dashed: the reference" if marked is not None else "")
    return charts.rows(
        "test accuracy of the deployed network", entries, x_label="test accuracy, selected epoch (%)", note=note,
        marked=marked,
    )  # fmt: skip


def _runs(comparison: ComparisonRecord, where: Path) -> Markup:
    rows = [
        [
            member.label if member.run is None else of_sweep.job_link(member.run, where),
            str(member.seed),
            member.state,
            of_run.percent(member.accuracy),
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
    found = [dict(collect.flat(run.config)) for run in first.values()]
    apart = collect.varied([run.config for run in first.values()])
    keys = [key for key in (found[0] if found else {}) if key in (*apart.keys, *apart.following)]
    keys += [key for key in (*apart.keys, *apart.following) if key not in keys]
    if not keys:
        return tag("p", "No settings differ, or none can be read.", class_="note")
    rows = [
        [tag("code", key), *(collect.show(one[key]) if key in one else "" for one in found)] for key in sorted(keys)
    ]
    shown = table(["key", *first], rows, text_columns=len(first) + 1)
    return join([tag("details", tag("summary", f"{len(keys)} settings differ between the labels"), shown)])
