"""Tables of figures: what a column is, and how rows become CSV, Markdown or lines on the terminal."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dkel_lightning.app.runs.groups import COMPARED, Group
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.texts import csv_cell, markdown, printable
from dkel_lightning.studies.seed_statistics import Paired, Sample

NOT_KNOWN = "n/a"
WITHOUT_TERMINAL = 130
"""Columns of text where there is no terminal: rich's own 80 are too few for these tables."""
Row = Sequence[object]
Rows = tuple[list[str], list[list[str]]]
"""The heading of a table, and what stands under it."""


@dataclass(frozen=True)
class Column:
    """A figure of a table and how it is written.

    Attributes:
        name: heading of the column.
        scale: factor on the figure.
        digits: behind the point.
        unit: beside the heading.
        measured: whether it has a deviation; what is chosen has none.
        figure: its name among the figures of a run, where that is not `name`.
    """

    name: str
    scale: float
    digits: int
    unit: str = ""
    measured: bool = True
    figure: str = ""

    @property
    def of(self) -> str:
        """Name of the figure among those of a run."""
        return self.figure or self.name

    @property
    def heading(self) -> str:
        """Name the column with its unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def cell(self, summary: Sample | None) -> str:
        """Write mean and deviation."""
        if summary is None:
            return NOT_KNOWN
        mean = f"{summary.mean * self.scale:,.{self.digits}f}"
        if summary.deviation is None or not self.measured:
            return mean
        return f"{mean} ± {summary.deviation * self.scale:,.{self.digits}f}"

    def difference(self, found: Paired | None) -> str:
        """Write a difference of pairs with its 95 % interval."""
        if found is None:
            return NOT_KNOWN
        mean, interval = _signed(found, self.scale, self.digits)
        return f"{mean} ({interval})"


OBJECTIVE = "selected validation accuracy"
"""What a search maximises."""
COLUMNS = (
    Column("last deployed accuracy", 100, 2, "%"),
    Column(COMPARED, 100, 2, "%"),
    Column(OBJECTIVE, 100, 2, "%"),
    Column("selected students' mean accuracy", 100, 2, "%"),
    Column("selected students' ensemble accuracy", 100, 2, "%"),
    Column("selected teachers' mean accuracy", 100, 2, "%"),
    Column("selected teachers' ensemble accuracy", 100, 2, "%"),
    Column("selected NLL", 1, 4),
    Column("selected calibration error", 100, 2, "%"),
    Column("selected peer disagreement", 100, 2, "%"),
    Column("selected teacher distance", 1, 3),
)
"""The columns of a setting of a sweep."""


def group_table(keys: Sequence[str], groups: Iterable[Group], columns: Sequence[Column]) -> Rows:
    """Write a row a group: what it is, how many of its runs have finished, and mean and deviation of each column."""
    cells = ((group, [column.cell(group.sample(column.of)) for column in columns]) for group in groups)
    return [*keys, "n", *(column.heading for column in columns)], [
        [*(group.values or (group.name,)), str(len(group.figures(COMPARED))), *row] for group, row in cells
    ]


def difference_table(groups: Iterable[Group], reference: Group) -> Rows:
    """Write the differences of accuracies to those of a reference in points, with what their pairs allow to say."""
    rows = [[group.name, *_difference(group.less(reference))] for group in groups if group is not reference]
    return ["label", "n", "difference (points)", "95 % interval", "smallest detectable"], rows


def _difference(found: Paired | None) -> list[str]:
    if found is None:
        return ["0", NOT_KNOWN, NOT_KNOWN, NOT_KNOWN]
    detectable = NOT_KNOWN if found.detectable is None else f"{100 * found.detectable:.2f}"
    return [str(found.n), *_signed(found, 100, 2), detectable]


def _signed(found: Paired, scale: float, digits: int) -> tuple[str, str]:
    """Write the mean of a difference and its 95 % interval."""
    mean, *ends = [f"{scale * each:+,.{digits}f}" for each in (found.mean, found.low, found.high) if each is not None]
    return mean, " to ".join(ends) or NOT_KNOWN


def difference_title(reference: str, name: str) -> str:
    """Name a table of differences."""
    return f"{name.capitalize()} less that of {reference}"


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, the heading first, so that the file is whole at any moment; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(csv_cell, row) for row in rows)
    write_text(path, text.getvalue())


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Write lines of Markdown: text in the first column, numbers in the others."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return [f"| {' | '.join(row)} |" for row in (map(markdown, heading), rule, *(map(markdown, row) for row in rows))]


def cell(text: str) -> Text:
    """Make a text of a table on the terminal, in which nothing is markup."""
    return Text(printable(text))


def print_table(
    title: str, heading: Sequence[str], rows: Iterable[Sequence[str]], console: Console | None = None
) -> None:
    """Print a table: text in the first column, numbers in the others."""
    table = Table(title=cell(title), title_justify="left")
    for position, name in enumerate(heading):
        table.add_column(cell(name), justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    (console or Console(width=None if sys.stdout.isatty() else WITHOUT_TERMINAL)).print(table)
