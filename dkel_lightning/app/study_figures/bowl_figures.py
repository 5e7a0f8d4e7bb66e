"""Figures of student and teacher in a bowl: paths, angles, distances, losses, steps to arrive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from dkel_lightning.app.study_figures.plane import (
    ALONE,
    DASHED,
    SOLID,
    STUDENT,
    TEACHER,
    LineStyle,
    axes_grid,
    contours,
    draw_chords,
    draw_paths,
    drawn_starts,
    finish,
    first_pull,
    new_figure,
    path_legend,
)
from dkel_lightning.studies.bowl import (
    NO_TEACHER,
    RELEASED_LR_SCALE,
    RELEASED_STEPS,
    Bowl,
    initialised_label,
)
from dkel_lightning.studies.geometry import Geometry
from dkel_lightning.studies.pairs import Pull, alignment
from dkel_lightning.studies.recursion import mode_matrix, relative_distance, relative_distance_floor

STARTS = ("#1f77b4", "#17becf", "#9467bd", "#d62728", "#ff7f0e", "#bcbd22", "#2ca02c", "#006d2c", "#8c564b")


def draw(found: Geometry) -> dict[str, Figure]:
    """Draw every figure, by name."""
    return {
        "bowl_paths": _paths(found),
        "bowl_angle": _angle(found),
        "bowl_distance": _distance(found),
        "bowl_losses": _losses(found),
        "bowl_steps": _steps(found),
    }


def _starts(bowl: Bowl) -> list[str]:
    return list(dict.fromkeys(row.start for row in bowl.rows if row.start != NO_TEACHER))


def _colours(bowl: Bowl) -> dict[str, str]:
    return {start: STARTS[i % len(STARTS)] for i, start in enumerate(_starts(bowl))}


def _name(bowl: Bowl) -> str:
    return "round bowl" if bowl.curvature == 1 else f"bowl of curvatures 1 and {bowl.curvature:g}"


def _paths(found: Geometry) -> Figure:
    starts, pull = drawn_starts(found), first_pull(found)
    figure = new_figure(4 * len(starts), 4.1 * len(found.bowls) + 0.6)
    for row, bowl in zip(axes_grid(figure, len(found.bowls), len(starts)), found.bowls, strict=True):
        for axes, start in zip(row, starts, strict=True):
            _panel(axes, found, bowl, start, pull)
    figure.legend(handles=path_legend(alone=True), loc="outside lower center", ncols=5, fontsize=9)
    figure.suptitle(f"Paths over {found.settings.bowl.steps} steps, {pull.label}")
    return figure


def _panel(axes: Axes, found: Geometry, bowl: Bowl, start: str, pull: Pull) -> None:
    steps = found.settings.bowl.steps
    pair, alone = bowl.pair(start, pull), bowl.pairs[0]
    radius = 1.18 * max(found.settings.bowl.radius, float(np.abs(pair.teacher[0]).max()))
    contours(axes, bowl.loss, radius, np.linspace(0.02, 1, 10) ** 2 * 0.5 * radius**2)
    axes.plot(*alone.student[: steps + 1].T, color=ALONE, linewidth=1, linestyle=DASHED)
    draw_paths(axes, pair, steps)
    draw_chords(axes, pair, [int(step) for step in found.settings.bowl.chords if step <= steps])
    axes.plot(0, 0, "k*", markersize=9)
    axes.set_title(f"{_name(bowl)}\n{start}", fontsize=9)


def _angle(found: Geometry) -> Figure:
    figure = new_figure(4.2 * len(found.bowls), 4.6)
    pull, last = first_pull(found), found.settings.bowl.steps
    for axes, bowl in zip(axes_grid(figure, 1, len(found.bowls))[0], found.bowls, strict=True):
        for start, colour in _colours(bowl).items():
            cosines = alignment(bowl.pair(start, pull))[1 : last + 1]
            axes.plot(np.arange(1, len(cosines) + 1), cosines, color=colour, label=start, linestyle=_dash(start))
        axes.axhline(0, color="k", linewidth=0.8)
        axes.text(0.98, 0.97, "towards the optimum", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.text(0.98, 0.47, "away from it", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.set_ylim(-1.05, 1.05)
        finish(axes, _name(bowl), "step", "cos(teacher - student, optimum - student)", log_x=True)
    _legend_below(figure, _colours(found.bowls[0]))
    figure.suptitle(f"Where the teacher pulls, {pull.label}")
    return figure


def _dash(start: str) -> LineStyle:
    """Dash the released initialisation, which lies on the own draw without one."""
    released = initialised_label(RELEASED_STEPS, RELEASED_LR_SCALE)
    return DASHED if start == released else SOLID


def _legend_below(figure: Figure, colours: dict[str, str], extra: Sequence[Line2D] = ()) -> None:
    handles = [Line2D([], [], color=colour, label=name, linestyle=_dash(name)) for name, colour in colours.items()]
    figure.legend(handles=[*handles, *extra], loc="outside lower center", ncols=4, fontsize=8)


def _distance(found: Geometry) -> Figure:
    figure = new_figure(4.2 * len(found.bowls), 7.4)
    pull = first_pull(found)
    last = min(10 * found.settings.bowl.steps, found.settings.bowl.max_steps)
    upper, lower = axes_grid(figure, 2, len(found.bowls))
    for above, below, bowl in zip(upper, lower, found.bowls, strict=True):
        for start, colour in _colours(bowl).items():
            pair = bowl.pair(start, pull)
            times, style = np.arange(1, last + 1), _dash(start)
            distance, reach = pair.distance[1 : last + 1], np.linalg.norm(pair.teacher[1 : last + 1], axis=1)
            above.plot(times, distance, color=colour, linestyle=style)
            below.plot(times, distance / np.maximum(reach, 1e-300), color=colour, linestyle=style)
        floor = relative_distance_floor(bowl.curvature, pull.weight)
        matrix = mode_matrix(bowl.curvature, pull.weight, found.settings.lr, found.settings.decay, pull.weight)
        below.axhline(floor, color="k", linewidth=1, linestyle=":")
        below.axhline(relative_distance(matrix), color="k", linewidth=1, linestyle=DASHED, zorder=3)
        below.set_yscale("log")
        below.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        below.yaxis.set_major_formatter("{x:g}")
        below.set_ylim(bottom=0.2 * floor, top=5)
        finish(above, _name(bowl), "step", "distance |teacher - student|", log_x=True)
        finish(below, _name(bowl), "step", "the same / |teacher - optimum| (log)", log_x=True)
    lines = [
        Line2D([], [], color="k", linestyle=":", label="h / (h + W) of the flatter direction"),
        Line2D([], [], color="k", linestyle=DASHED, label="its exact value at this EMA rate"),
    ]
    _legend_below(figure, _colours(found.bowls[0]), lines)
    figure.suptitle(f"How far apart teacher and student are, {pull.label}")
    return figure


def _losses(found: Geometry) -> Figure:
    figure = new_figure(4.2 * len(found.bowls), 4.6)
    pull, last = first_pull(found), found.settings.bowl.steps
    for axes, bowl in zip(axes_grid(figure, 1, len(found.bowls))[0], found.bowls, strict=True):
        for start, colour in _colours(bowl).items():
            pair = bowl.pair(start, pull)
            gap = bowl.loss(pair.teacher[: last + 1]) - bowl.loss(pair.student[: last + 1])
            axes.plot(gap, color=colour, linestyle=_dash(start))
        axes.axhline(0, color="k", linewidth=0.8)
        finish(axes, _name(bowl), "step", "loss of the teacher - loss of the student")
        axes.text(0.98, 0.97, "teacher worse", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.text(0.98, 0.03, "teacher better", transform=axes.transAxes, ha="right", va="bottom", fontsize=8)
    _legend_below(figure, _colours(found.bowls[0]))
    figure.suptitle(f"Is the teacher better than its student? {pull.label}")
    return figure


def _steps(found: Geometry) -> Figure:
    weights = found.settings.bowl.weights
    starts = len(_starts(found.bowls[0]))
    figure = new_figure(2.4 + 4.0 * len(found.bowls), 0.9 + len(weights) * (0.9 + 0.36 * (starts + 1)))
    for row, weight in zip(axes_grid(figure, len(weights), len(found.bowls)), weights, strict=True):
        for position, (axes, bowl) in enumerate(zip(row, found.bowls, strict=True)):
            _step_bars(axes, found, bowl, weight)
            if position:
                axes.set_yticklabels([])
    figure.legend(
        handles=[
            Patch(color=ALONE, label="no teacher"),
            Patch(color=TEACHER, label="constant weight"),
            Patch(color=STUDENT, label=f"weight decaying as exp(-t/{found.settings.bowl.weight_time:g})"),
            Line2D([], [], color="k", marker="|", linestyle="", markersize=9, label="median over all directions"),
        ],
        loc="outside lower center",
        ncols=4,
        fontsize=9,
    )
    share = found.settings.bowl.tolerance
    title = f"Steps until the student's distance stays below {100 * share:g} % of its first (number: of the bar)"
    figure.suptitle(title)
    return figure


def _step_bars(axes: Axes, found: Geometry, bowl: Bowl, weight: float) -> None:
    starts = _starts(bowl)
    last = found.settings.bowl.max_steps
    medians = {(r.start, r.pull): r.median for r in found.directions if r.curvature == bowl.curvature}
    # Place, steps (None: not in max_steps), colour, median over directions (0: none to draw).
    bars: list[tuple[float, int | None, str, float]] = [(0, bowl.alone.arrival, ALONE, 0.0)]
    for place, start in enumerate(starts, 1):
        pulls = ((Pull(weight), TEACHER, -0.2), (Pull(weight, found.settings.bowl.weight_time), STUDENT, 0.2))
        for pull, colour, offset in pulls:
            median = medians.get((start, pull), 0.0)
            bars.append((place + offset, bowl.row(start, pull).arrival, colour, median if median < last else 0.0))
    widths = [float(last if steps is None else steps) for _, steps, _, _ in bars]
    longest = max([*widths, *(median for _, _, _, median in bars)])
    axes.set_axisbelow(True)
    for (height, steps, colour, median), width in zip(bars, widths, strict=True):
        axes.barh(height, width, 0.38, color=colour, alpha=0.85)
        said = f"> {last:,}" if steps is None else f"{steps:,}"
        axes.text(max(width, median) + 0.015 * longest, height, said, va="center", fontsize=7)
        if median:
            axes.plot(median, height, "k|", markersize=7)
    if bowl.alone.arrival is not None:
        axes.axvline(bowl.alone.arrival, color=ALONE, linewidth=1, linestyle=DASHED, zorder=0)
    axes.set_yticks(range(len(starts) + 1), [NO_TEACHER, *starts], fontsize=8)
    axes.set_ylim(len(starts) + 0.6, -0.5)
    axes.set_xlim(0, 1.14 * longest)
    finish(axes, f"{_name(bowl)}, W = {weight:g}", "steps", "")
