"""What all figures share: how axes look, bands, legends off the lines, saving. Draws without pyplot."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from dkel_lightning.runtime.atomic_files import write_bytes

STUDENT, TEACHER, ALONE = "#1f77b4", "#d62728", "#7f7f7f"
DASHED: Any = (0, (4, 2))
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
    "svg.fonttype": "none",
    "svg.hashsalt": "dkel",  # the same figure gives the same file
}
styled = matplotlib.rc_context(STYLE)
"""Decorates what makes a figure."""
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def grid(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with axes in rows and columns of this size in inches."""
    figure = Figure(figsize=(width * columns, height * rows))
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False, **options)]


def panels(count: int, beside: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many axes, `beside` each other in a row; what is left of the last row stays empty."""
    figure, rows = grid(-(-count // beside), beside, width, height, **options)
    places = [each for row in rows for each in row]
    for each in places[count:]:
        each.set_visible(False)
    return figure, places[:count]


def plain(text: object) -> str:
    """Take a name as it stands: nothing in it is a formula, and what no file may hold is replaced."""
    return UNPRINTABLE.sub("\ufffd", str(text)).replace("$", r"\$")


def colour(number: int, of: int, *, ordered: bool = False) -> Any:
    """Give one of several colours; shades of one where their order means something or there are too many."""
    if of <= 20 and not ordered:
        return colormaps["tab20"](2 * number if number < 10 else 2 * number - 19)  # the strong ones first
    return colormaps["viridis"](0.9 * number / max(1, of - 1))


def name(axes: Axes, title: str, x: str, y: str = "", *, log_x: bool = False) -> None:
    """Name axes and panel."""
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()  # most of the time of drawing
    axes.set_title(title)
    axes.set_xlabel(x + (" (log scale)" if log_x else ""))
    axes.set_ylabel(y)


def band(axes: Axes, x: Sequence[float], values: ArrayLike, **line: Any) -> None:
    """Draw the mean of several runs, a row each, over a band from the lowest to the highest."""
    array = np.asarray(values, dtype=float)
    (drawn,) = axes.plot(x, array.mean(0), **line)
    if len(array) > 1:
        axes.fill_between(x, array.min(0), array.max(0), color=drawn.get_color(), alpha=0.15, linewidth=0)


def legend_beside(axes: Axes) -> None:
    """Put a legend to the right of the axes, if anything is named."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int, **options: Any) -> None:
    """Put one legend below all axes."""
    figure.legend(handles=[*handles], loc="outside lower center", ncols=columns, **options)


@styled
def encoded(figure: Figure, form: str, dpi: int = 120) -> bytes:
    """Give a figure as the bytes of a png, svg or pdf."""
    written = io.BytesIO()
    if form == "png":  # what savefig does, less two drawings that nobody sees
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).print_png(written)  # type: ignore[no-untyped-call]
        return written.getvalue()
    if figure.get_layout_engine() is not None:  # laid out once, not twice for each form
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    dated = {"svg": "Date", "pdf": "CreationDate"}.get(form)
    figure.savefig(written, format=form, dpi=dpi, metadata={dated: None} if dated else None)
    return written.getvalue()


def save(figure: Figure, path: Path, also: Sequence[str] = (), dpi: int = 120) -> list[Path]:
    """Write a figure in the form that its suffix names and in others beside it, each whole at any moment."""
    paths = [path, *(path.with_suffix(f".{form}") for form in also)]
    for each in paths:
        write_bytes(each, encoded(figure, each.suffix[1:], dpi))
    return paths


def save_pixels(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write pixels [H, W, 3] as a PNG, whole at any moment."""
    written = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(written, "PNG")
    write_bytes(path, written.getvalue())


def save_all(figures: Mapping[str, Figure], folder: Path, also: Sequence[str] = ()) -> list[Path]:
    """Write figures into a folder as PNG and in other forms, by name, and return their paths."""
    return [path for name, figure in figures.items() for path in save(figure, folder / f"{name}.png", also)]
