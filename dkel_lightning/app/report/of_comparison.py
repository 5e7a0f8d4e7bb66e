"""The page of a comparison: the tables that task=compare wrote, its figure, and the curves of its members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dkel_lightning.app.config import schema
from dkel_lightning.app.report import charts, shared
from dkel_lightning.app.report.markup import Markup, items, join, page, section, table, tag
from dkel_lightning.app.report.shared import note, percent, show
from dkel_lightning.app.runs import kinds
from dkel_lightning.app.runs.groups import COMPARED, Group, is_seed
from dkel_lightning.app.runs.parsing import read_table, read_text
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.app.runs.settings import differences


@dataclass(frozen=True)
class ComparisonRecord:
    """What a comparison's folder says.

    Attributes:
        text: compare.md, None where it is missing.
        groups: the runs by label and seed, in the order of the table.
        reference: the label that the others are compared to, None where it is not known.
    """

    folder: Path
    text: str | None
    groups: Sequence[Group]
    reference: str | None

    @property
    def runs(self) -> list[RunRecord]:
        """All runs."""
        return [run for group in self.groups for run in group.runs.values()]


def read_comparison(folder: Path) -> ComparisonRecord:
    """Read a comparison, whatever state it is in."""
    summary = read_table(folder / "compare.csv")
    found: dict[str, dict[str, RunRecord]] = {row.get("label", ""): {} for row in summary}
    for label, seed, path in kinds.members(folder):
        found.setdefault(label, {})[str(seed)] = RunRecord(path, f"{label}, seed {seed}")
    # The reference is the one label that has no difference to it.
    alone = [row.get("label", "") for row in summary if not row.get("difference n")]
    reference = alone[0] if len(alone) == 1 and len(summary) > 1 else None
    groups = [Group(label, (label,), runs) for label, runs in found.items()]
    return ComparisonRecord(folder, read_text(folder / "compare.md"), groups, reference)


def write_page(comparison: ComparisonRecord, where: Path) -> str:
    """Write the page of a comparison that will lie in the folder `where`."""
    seeds = sorted({int(seed) for group in comparison.groups for seed in group.runs})
    reference = f" Compared to {comparison.reference}." if comparison.reference else ""
    subtitle = f"{len(comparison.groups)} labels, seeds {', '.join(map(str, seeds)) or 'unknown'}.{reference}"
    opening = [items([*_warnings(comparison)], "warnings")]
    return page("Comparison", subtitle, opening, [*_sections(comparison, where)])


def _sections(comparison: ComparisonRecord, where: Path) -> Iterator[tuple[str, Markup]]:
    text = comparison.text
    yield section("Result", *(_from_markdown(text) if text is not None else [note("No table was written.")]))
    yield section("Accuracy", charts.grid([_figure(comparison)]))
    yield section("Curves", *shared.overlay(comparison.groups))
    yield section("Runs", _runs(comparison, where))
    yield section("What differs", _differences(comparison.groups))
    yield section("Files", shared.files(comparison.folder, where))


def _warnings(comparison: ComparisonRecord) -> Iterator[str]:
    if comparison.text is None:
        yield "No compare.md: no run of this comparison has ended."
    failed = [f"{run.name} ({run.failure})" for run in comparison.runs if run.failure is not None]
    if failed:
        yield f"Failed: {'; '.join(failed)}."
    begun = [run.name for run in comparison.runs if run.state == "unfinished"]
    if begun:
        yield f"Begun and not finished: {'; '.join(begun)}."
    collapsed = [run.name for run in comparison.runs if run.collapse is not None]
    if collapsed:
        yield f"The collapse guard has reported a collapse (collapse.json): {'; '.join(collapsed)}."
    if any(map(shared.on_test_set, comparison.runs)):
        yield f"Epoch and peer were {shared.ON_TEST_SET}: the figures are biased upwards."


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
    found = {group.name: group.figures(COMPARED) for group in comparison.groups}
    marked = [*found].index(comparison.reference) if comparison.reference else None
    return shared.accuracies(found, marked, "" if marked is None else "; dashed: the reference")


def _runs(comparison: ComparisonRecord, where: Path) -> Markup:
    rows = [
        [shared.job_link(run, where), seed, shared.ending(run), percent(run.figure(COMPARED)), str(run.epochs_done)]
        for group in comparison.groups
        for seed, run in group.runs.items()
    ]
    return table(["run", "seed", "state", "selected accuracy", "epochs"], rows, text_columns=3)


def _differences(groups: Sequence[Group]) -> Markup:
    """Show the settings that are not the same for all labels."""
    found = ((group.name, next((run.config for run in group.runs.values() if run.config), {})) for group in groups)
    configs = {name: config for name, config in found if config}
    first, *others = configs.values() if configs else ({},)
    said = [line for config in others for line in differences(first, config)]
    apart = [key for key in dict.fromkeys(line.partition(":")[0] for line in said) if not is_seed(key)]
    if not apart:
        return note("No settings differ, or none can be read.")
    settings = [dict(schema.leaves(config)) for config in configs.values()]
    rows = [[tag("code", key), *(show(one[key]) if key in one else "" for one in settings)] for key in sorted(apart)]
    listed = table(["key", *configs], rows, text_columns=len(configs) + 1)
    return join([tag("details", tag("summary", f"{len(apart)} settings differ between the labels"), listed)])
