"""What the figures of two points of a plane share: contours, paths and how panels look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from dkel_lightning.studies.bowl import OWN, initialised_label
from dkel_lightning.studies.geometry import Geometry
from dkel_lightning.studies.pairs import COPY, Gradient, Pair, Pull
from dkel_lightning.studies.recursion import Array

STUDENT, TEACHER, ALONE = "#1f77b4", "#d62728", "#7f7f7f"
LineStyle = tuple[float, Sequence[float]] | Literal["-"]
SOLID: LineStyle = "-"
DASHED: LineStyle = (0, (4, 2))


def paletted(canvas: Any, colours: int) -> Image.Image:
    """Reduce the colours of what a canvas shows, which makes files a third as large."""
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).quantize(colours)


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure."""
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def axes_grid(figure: Figure, rows: int, columns: int) -> list[list[Axes]]:
    """Make axes in rows and columns."""
    axes = figure.subplots(rows, columns, squeeze=False)
    return [list(row) for row in axes]


def drawn_starts(found: Geometry) -> list[str]:
    """Name the starts whose paths are drawn: copy, own draw, and the longest initialisation."""
    bowl = found.settings.bowl
    steps = int(bowl.init_steps[-1])
    return [COPY, OWN, initialised_label(steps, bowl.init_lr_scale)]


def first_pull(found: Geometry) -> Pull:
    """Give the weight of the figures that show one alone."""
    return Pull(found.settings.bowl.weights[0])


def contours(axes: Axes, loss: Gradient, radius: float, levels: Array) -> None:
    """Draw the level lines of a loss around the optimum or saddle."""
    line = np.linspace(-radius, radius, 121)
    x, y = np.meshgrid(line, line)
    axes.contour(x, y, loss(np.stack([x, y], -1)), levels=levels, colors="0.82", linewidths=0.7)
    axes.set_aspect("equal")
    axes.set_xlim(-radius, radius)
    axes.set_ylim(-radius, radius)
    axes.tick_params(labelsize=7)


def draw_paths(axes: Axes, pair: Pair, steps: int) -> None:
    """Draw the paths of student and teacher."""
    # The teacher's path lies under the student's where the two are one line.
    for points, colour, width in ((pair.teacher, TEACHER, 3.2), (pair.student, STUDENT, 1.4)):
        axes.plot(*points[: steps + 1].T, color=colour, linewidth=width)
        axes.plot(*points[0], "o", color=colour, markersize=5)


def draw_chords(axes: Axes, pair: Pair, steps: Sequence[int]) -> None:
    """Join student and teacher at some steps."""
    for step in steps:
        axes.plot(*np.stack([pair.student[step], pair.teacher[step]]).T, "k:", linewidth=1.1, marker=".", markersize=3)


def path_legend(*, alone: bool) -> list[Line2D]:
    """Explain what paths are drawn with."""
    handles = [
        Line2D([], [], color=STUDENT, marker="o", label="student (dot: start)"),
        Line2D([], [], color=TEACHER, marker="o", label="teacher"),
        Line2D([], [], color="k", linestyle=":", label="the two at one step"),
    ]
    if alone:
        handles.append(Line2D([], [], color=ALONE, linestyle=DASHED, label="student without a teacher"))
    return [*handles, Line2D([], [], color="k", marker="*", linestyle="", label="optimum")]


def finish(axes: Axes, title: str, x: str, y: str, *, log_x: bool = False) -> None:
    """Name axes and panel."""
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()  # most of the time of drawing
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x + (" (log scale)" if log_x else ""), fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.grid(alpha=0.3)
