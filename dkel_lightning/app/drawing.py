"""What all figures share: style, colours, panels, legends and saving as PNG, without pyplot."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dkel_lightning.runtime.atomic_files import write_bytes

STUDENT, TEACHER, ALONE = "#1f77b4", "#d62728", "#7f7f7f"
DASHED: Any = (0, (4, 2))
LINES: Sequence[Any] = ("-", DASHED, (0, (1, 1.5)), (0, (6, 2, 1, 2)))
STYLE: Any = {
    "figure.constrained_layout.use": True,
    "figure.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
styled = matplotlib.rc_context(STYLE)
"""Decorates what makes a figure."""


def grid(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with axes in rows and columns of this size in inches."""
    figure = Figure(figsize=(width * columns, height * rows))
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False, **options)]


def panels(count: int, beside: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` axes, `beside` in a row; the rest of the last row stays empty."""
    figure, rows = grid(-(-count // beside), beside, width, height, **options)
    axes = [one for row in rows for one in row]
    for one in axes[count:]:
        one.set_visible(False)
    return figure, axes[:count]


def plain(text: object) -> str:
    """Escape what matplotlib would take for a formula."""
    return str(text).replace("$", r"\$")


def colour(number: int, of: int, *, ordered: bool = False) -> Any:
    """Return one of several colours; shades of one where their order means something or there are more than 20."""
    if of <= 20 and not ordered:
        return colormaps["tab20"](2 * number if number < 10 else 2 * number - 19)  # the strong ones first
    return colormaps["viridis"](0.9 * number / max(1, of - 1))


def name(axes: Axes, title: str, x: str, y: str = "", *, log_x: bool = False) -> None:
    """Set the title of a panel and the names of its axes."""
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()  # most of the time of drawing
    axes.set_title(title)
    axes.set_xlabel(x + (" (log scale)" if log_x else ""))
    axes.set_ylabel(y)


def legend_beside(axes: Axes) -> None:
    """Put a legend to the right of the axes, if anything is named."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int, **options: Any) -> None:
    """Put one legend below all axes."""
    figure.legend(handles=[*handles], loc="outside lower center", ncols=columns, **options)


@styled
def encoded(figure: Figure) -> bytes:
    """Encode a figure as PNG."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    write_bytes(path, encoded(figure))


def save_all(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures into a folder by name, and return their paths."""
    paths = {folder / f"{name}.png": figure for name, figure in figures.items()}
    for path, figure in paths.items():
        save(figure, path)
    return [*paths]


def save_pixels(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write pixels [H, W, 3] as PNG."""
    written = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(written, "PNG")
    write_bytes(path, written.getvalue())
