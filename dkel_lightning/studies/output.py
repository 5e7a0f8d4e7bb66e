"""Files of a study: tables as CSV and Markdown, figures as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.tables import markdown_table, write_csv

STYLE: Any = {"figure.constrained_layout.use": True, "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3}
STYLE |= {
    "figure.titlesize": 11,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
COLOURS = [colormaps["tab10"](number) for number in range(10)]


styled = matplotlib.rc_context(STYLE)
"""Decorates what makes a figure."""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)


def write_tables(folder: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write each table, a mapping from column to value per row, to NAME.csv, and all of them to tables.md."""
    lines = []
    for name, rows in tables.items():
        heading, cells = [*rows[0]], [[_cell(value) for value in row.values()] for row in rows]
        write_csv(folder / f"{name}.csv", [heading, *cells])
        lines += [f"## {name}", "", *markdown_table(heading, cells), ""]
    write_text(folder / "tables.md", "\n".join(lines))


def grid(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure of axes that are `width` by `height` inches each."""
    figure = Figure(figsize=(width * columns, height * rows))
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False, **options)]


@styled
def save_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write NAME.png for each figure, with a legend below the axes of what the first axes name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        if not figure.legends:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.savefig(folder / f"{name}.png", dpi=120)
