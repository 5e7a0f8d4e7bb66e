"""Figures of student and teacher between two mirror optima: paths, losses, steps to arrive."""

from __future__ import annotations

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dkel_lightning.app.study_figures.plane import (
    DASHED,
    axes_grid,
    contours,
    draw_chords,
    draw_paths,
    finish,
    new_figure,
    path_legend,
)
from dkel_lightning.studies.geometry import Geometry
from dkel_lightning.studies.mirror import mirror_loss
from dkel_lightning.studies.pairs import Pair
from dkel_lightning.studies.recursion import half_way_steps

WEIGHTS = ("#7f7f7f", "#fdae61", "#f46d43", "#a50026", "#5e3c99", "#2c7fb8")


def draw(found: Geometry) -> dict[str, Figure]:
    """Draw every figure, by name."""
    return {"mirror_paths": _paths(found), "mirror_losses": _losses(found), "mirror_steps": _steps(found)}


def mirror_radius(found: Geometry) -> float:
    """Give how far the landscape is drawn."""
    mirror = found.settings.mirror
    return max(1.5, 1.2 * float(np.abs([*mirror.student, *mirror.trained, *mirror.untrained]).max()))


def _paths(found: Geometry) -> Figure:
    mirror = found.mirror
    figure = new_figure(3.1 * len(mirror.weights), 3.2 * len(mirror.starts) + 0.6)
    grid = axes_grid(figure, len(mirror.starts), len(mirror.weights))
    by_key = {(pair.start.label, pair.pull.weight): pair for pair in mirror.pairs}
    for row, start in zip(grid, mirror.starts, strict=True):
        for axes, weight in zip(row, mirror.weights, strict=True):
            _panel(axes, found, by_key[start, weight])
            axes.label_outer()
            axes.set_title(f"{start}\nW = {weight:g}", fontsize=9)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=5, fontsize=9)
    figure.suptitle(f"Two mirror optima: paths over {found.settings.mirror.steps} steps")
    return figure


def _legend() -> list[Line2D]:
    return [
        *path_legend(alone=False)[:3],
        Line2D([], [], color="k", linewidth=0.8, label="optima, u v = 1"),
        Line2D([], [], color="k", marker="x", linestyle="", label="saddle"),
    ]


def _panel(axes: Axes, found: Geometry, pair: Pair) -> None:
    radius = mirror_radius(found)
    contours(axes, mirror_loss, radius, np.array([0.02, 0.1, 0.25, 0.45, 0.55, 0.8, 1.2]))
    line = np.linspace(1 / radius, radius, 80)
    for sign in (1, -1):
        axes.plot(sign * line, sign / line, color="k", linewidth=0.8)
    axes.plot(0, 0, "kx", markersize=5)
    draw_paths(axes, pair, len(pair.student) - 1)
    # The bowl's steps, and later ones: crossing a barrier takes longer.
    steps = [int(step) for step in found.settings.bowl.chords]
    draw_chords(axes, pair, [step for step in steps if step < len(pair.student)])


def _losses(found: Geometry) -> Figure:
    mirror = found.mirror
    figure = new_figure(3.6 * len(mirror.starts), 6.2)
    students, teachers = axes_grid(figure, 2, len(mirror.starts))
    colours = {weight: WEIGHTS[i % len(WEIGHTS)] for i, weight in enumerate(mirror.weights)}
    last = min(found.settings.mirror.steps, 400)
    for pair in mirror.pairs:
        column = mirror.starts.index(pair.start.label)
        for axes, points in ((students[column], pair.student), (teachers[column], pair.teacher)):
            losses = mirror_loss(points[: last + 1])
            axes.plot(losses, color=colours[pair.pull.weight], linewidth=1.4)
    top = 1.05 * max(float(mirror_loss(p).max()) for pair in mirror.pairs for p in (pair.student, pair.teacher))
    half = half_way_steps(found.settings.decay)
    for who, row in (("student", students), ("teacher", teachers)):
        for axes, start in zip(row, mirror.starts, strict=True):
            axes.set_ylim(-0.02, top)
            axes.axhline(found.settings.mirror.threshold, color="k", linewidth=0.6, linestyle=":")
            axes.axvline(half, color="k", linewidth=0.8, linestyle=DASHED)
            finish(axes, start, "step", f"loss of the {who}")
    handles = [Line2D([], [], color=colour, label=f"W = {weight:g}") for weight, colour in colours.items()]
    handles += [Line2D([], [], color="k", linestyle=DASHED, label=f"ln 2 / -ln a = {half:.0f} steps")]
    handles += [Line2D([], [], color="k", linestyle=":", label=f"threshold {found.settings.mirror.threshold:g}")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    figure.suptitle("Two mirror optima: losses of student and teacher")
    return figure


def _steps(found: Geometry) -> Figure:
    mirror = found.mirror
    figure = new_figure(9, 0.9 + 0.34 * len(mirror.rows))
    axes = figure.subplots()
    colours = {weight: WEIGHTS[i % len(WEIGHTS)] for i, weight in enumerate(mirror.weights)}
    last = found.settings.mirror.steps
    longest = max(last if row.arrival is None else row.arrival for row in mirror.rows)
    for place, row in enumerate(mirror.rows):
        steps = last if row.arrival is None else row.arrival
        hatch = "////" if row.crossed else None
        y = place + 0.7 * (place // len(mirror.weights))
        axes.set_axisbelow(True)
        axes.barh(y, steps, 0.85, color=colours[row.weight], hatch=hatch, edgecolor="white" if hatch else None)
        said = f"> {last}" if row.arrival is None else str(row.arrival)
        axes.text(steps + 0.01 * longest, y, said, va="center", fontsize=8)
    per_start = len(mirror.weights) + 0.7
    middle = [i * per_start + (len(mirror.weights) - 1) / 2 for i in range(len(mirror.starts))]
    axes.set_yticks(middle, mirror.starts, fontsize=9)
    axes.set_ylim(len(mirror.starts) * per_start - 0.8, -0.7)
    axes.set_xlim(0, 1.1 * longest)
    handles: list[Artist] = [Patch(color=colour, label=f"W = {weight:g}") for weight, colour in colours.items()]
    handles.append(Patch(facecolor="0.6", edgecolor="white", hatch="////", label="ends in the other branch"))
    axes.legend(handles=handles, fontsize=8, loc="lower right")
    threshold = found.settings.mirror.threshold
    finish(axes, f"Steps until the student's loss stays below {threshold:g}", "steps", "")
    return figure
