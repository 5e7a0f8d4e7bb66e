"""Tables as CSV, as Markdown and on the terminal."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dkel_lightning.runtime.atomic_files import write_text

WIDTH = 130
"""Width of tables without a terminal; rich's default is 80."""


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows, the first of which is the heading; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table: text in the first column, numbers in the others."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return [
        f"| {' | '.join(row)} |" for row in (heading, rule, *([c.replace("|", "\\|") for c in row] for row in rows))
    ]


def print_table(title: str, heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: text in the first column, numbers in the others. rich's markup is not interpreted."""
    table = Table()
    for position, name in enumerate(heading):
        table.add_column(Text(name), justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    print(title)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
