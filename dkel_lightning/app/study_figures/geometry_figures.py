"""Figures of task=geometry: paths, angles, distances, losses and steps to arrive of student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from dkel_lightning.app import drawing
from dkel_lightning.app.drawing import ALONE, DASHED, STUDENT, TEACHER, grid, legend_below
from dkel_lightning.studies.bowl import NO_TEACHER, OWN, RELEASED_LR_SCALE, RELEASED_STEPS, Bowl, initialised_label
from dkel_lightning.studies.geometry import Geometry
from dkel_lightning.studies.mirror import mirror_loss
from dkel_lightning.studies.pairs import COPY, Gradient, Pair, Pull, alignment
from dkel_lightning.studies.recursion import Array, half_way_steps, mode_matrix, relative_distance
from dkel_lightning.studies.recursion import relative_distance_floor as floor_of

STARTS = ("#1f77b4", "#17becf", "#9467bd", "#d62728", "#ff7f0e", "#bcbd22", "#2ca02c", "#006d2c", "#8c564b")
WEIGHTS = ("#7f7f7f", "#fdae61", "#f46d43", "#a50026", "#5e3c99", "#2c7fb8")
RELEASED = initialised_label(RELEASED_STEPS, RELEASED_LR_SCALE)


@drawing.styled
def draw(found: Geometry) -> dict[str, Figure]:
    """Draw every figure, by name."""
    last = found.settings.bowl.steps
    towards = "cos(teacher - student, optimum - student)\n(1: towards the optimum)"
    return {
        "bowl_paths": _bowl_paths(found),
        "bowl_angle": _courses(found, {towards: lambda _, pair: alignment(pair)}, last, "Where the teacher pulls"),
        "bowl_distance": _distances(found),
        "bowl_losses": _courses(
            found,
            {"loss of the teacher - loss of the student": lambda b, p: b.loss(p.teacher) - b.loss(p.student)},
            last,
            "Is the teacher better than its student?",
        ),
        "bowl_steps": _steps(found),
        "mirror_paths": _mirror_paths(found),
        "mirror_losses": _mirror_losses(found),
    }


def _line(look: Any, label: str, **options: Any) -> Line2D:
    return Line2D([], [], color="k", linestyle=look, label=label, **options)


# ---------------------------------------------------------------------- paths


def _bowl_paths(found: Geometry) -> Figure:
    settings, pull = found.settings.bowl, Pull(found.settings.bowl.weights[0])
    starts = [COPY, OWN, initialised_label(int(settings.init_steps[-1]), settings.init_lr_scale)]
    figure, axes = grid(len(found.bowls), len(starts), 4, 4.3)
    for row, bowl in zip(axes, found.bowls, strict=True):
        for each, start in zip(row, starts, strict=True):
            pair = bowl.pair(start, pull)
            radius = 1.18 * max(settings.radius, float(np.abs(pair.teacher[0]).max()))
            _contours(each, bowl.loss, radius, np.linspace(0.02, 1, 10) ** 2 * 0.5 * radius**2)
            alone = bowl.pairs[0].student[: settings.steps + 1]
            each.plot(*alone.T, color=ALONE, linewidth=1, linestyle=DASHED)
            _paths(each, pair, settings.steps, settings.chords)
            each.plot(0, 0, "k*", markersize=9)
            each.set_title(f"{_name(bowl)}\n{start}")
    ends = [Line2D([], [], color=ALONE, linestyle=DASHED, label="student without a teacher")]
    legend_below(figure, [*_who(), *ends, _line("", "optimum", marker="*")], 5)
    figure.suptitle(f"Paths over {settings.steps} steps, {pull.label}")
    return figure


def _mirror_paths(found: Geometry) -> Figure:
    mirror, settings = found.mirror, found.settings.mirror
    radius = max(1.5, 1.2 * float(np.abs([*settings.student, *settings.trained, *settings.untrained]).max()))
    figure, axes = grid(len(mirror.starts), len(mirror.weights), 3.1, 3.3)
    pairs = {(pair.start.label, pair.pull.weight): pair for pair in mirror.pairs}
    line = np.linspace(1 / radius, radius, 80)
    for row, start in zip(axes, mirror.starts, strict=True):
        for each, weight in zip(row, mirror.weights, strict=True):
            _contours(each, mirror_loss, radius, np.array([0.02, 0.1, 0.25, 0.45, 0.55, 0.8, 1.2]))
            for sign in (1, -1):
                each.plot(sign * line, sign / line, color="k", linewidth=0.8)
            each.plot(0, 0, "kx", markersize=5)
            _paths(each, pairs[start, weight], settings.steps, found.settings.bowl.chords)
            each.label_outer()
            each.set_title(f"{start}\nW = {weight:g}")
    legend_below(figure, [*_who(), _line("-", "optima, u v = 1", linewidth=0.8), _line("", "saddle", marker="x")], 5)
    figure.suptitle(f"Two mirror optima: paths over {settings.steps} steps")
    return figure


def _contours(axes: Axes, loss: Gradient, radius: float, levels: Array) -> None:
    """Draw the level lines of a loss around the optimum or saddle."""
    line = np.linspace(-radius, radius, 121)
    x, y = np.meshgrid(line, line)
    axes.contour(x, y, loss(np.stack([x, y], -1)), levels=levels, colors="0.82", linewidths=0.7)
    axes.set(aspect="equal", xlim=(-radius, radius), ylim=(-radius, radius))


def _paths(axes: Axes, pair: Pair, steps: int, chords: Iterable[float]) -> None:
    """Draw the paths of student and teacher, joined at some steps."""
    # The teacher's path lies under the student's where the two are one line.
    for points, colour, width in ((pair.teacher, TEACHER, 3.2), (pair.student, STUDENT, 1.4)):
        axes.plot(*points[: steps + 1].T, color=colour, linewidth=width)
        axes.plot(*points[0], "o", color=colour, markersize=5)
    for step in (int(step) for step in chords if step <= steps):
        axes.plot(*np.stack([pair.student[step], pair.teacher[step]]).T, "k:", linewidth=1.1, marker=".", markersize=3)


def _who() -> list[Line2D]:
    dots = [("student (dot: start)", STUDENT), ("teacher", TEACHER)]
    drawn = [Line2D([], [], color=colour, marker="o", label=label) for label, colour in dots]
    return [*drawn, _line(":", "the two at one step")]


# ---------------------------------------------------------------------- courses


def _name(bowl: Bowl) -> str:
    return "round bowl" if bowl.curvature == 1 else f"bowl of curvatures 1 and {bowl.curvature:g}"


def _colours(bowl: Bowl) -> dict[str, str]:
    starts = dict.fromkeys(row.start for row in bowl.rows if row.start != NO_TEACHER)
    return {start: STARTS[i % len(STARTS)] for i, start in enumerate(starts)}


def _courses(
    found: Geometry,
    shown: Mapping[str, Callable[[Bowl, Pair], Array]],
    last: int,
    title: str,
    explained: Sequence[Line2D] = (),
) -> Figure:
    """Draw quantities over the steps, a row each, a column a bowl, a line a start."""
    pull = Pull(found.settings.bowl.weights[0])
    figure, axes = grid(len(shown), len(found.bowls), 4.2, 3.8)
    # The released initialisation lies on the own draw without one.
    looks: dict[str, dict[str, Any]] = {
        start: {"color": colour, "linestyle": DASHED if start == RELEASED else "-"}
        for start, colour in _colours(found.bowls[0]).items()
    }
    for row, (label, values) in zip(axes, shown.items(), strict=True):
        for each, bowl in zip(row, found.bowls, strict=True):
            for start, look in looks.items():
                each.plot(np.arange(1, last + 1), values(bowl, bowl.pair(start, pull))[1 : last + 1], **look)
            each.axhline(0, color="k", linewidth=0.8)
            drawing.name(each, _name(bowl), "step", label, log_x=True)
    handles = [Line2D([], [], label=start, **look) for start, look in looks.items()]
    legend_below(figure, [*handles, *explained], 4)
    figure.suptitle(f"{title}, {pull.label}")
    return figure


def _distances(found: Geometry) -> Figure:
    settings, weight = found.settings, found.settings.bowl.weights[0]
    last = min(10 * settings.bowl.steps, settings.bowl.max_steps)

    def relative(_: Bowl, pair: Pair) -> Array:
        reach = np.linalg.norm(pair.teacher, axis=1)
        found: Array = pair.distance / np.maximum(reach, 1e-300)
        return found

    shown = {
        "distance |teacher - student|": lambda _, pair: pair.distance,
        "the same / |teacher - optimum| (log)": relative,
    }
    lines = [
        _line(":", "h / (h + W) of the flatter direction"),
        Line2D([], [], color="k", linestyle=DASHED, label="its exact value at this EMA rate"),
    ]
    figure = _courses(found, shown, last, "How far apart teacher and student are", lines)
    for each, bowl in zip(figure.axes[len(found.bowls) :], found.bowls, strict=True):
        floor = floor_of(bowl.curvature, weight)
        each.axhline(floor, color="k", linewidth=1, linestyle=":")
        exact = relative_distance(mode_matrix(bowl.curvature, weight, settings.lr, settings.decay, weight))
        each.axhline(exact, color="k", linewidth=1, linestyle=DASHED, zorder=3)
        each.set(yscale="log", ylim=(0.2 * floor, 5))
        each.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        each.yaxis.set_major_formatter("{x:g}")
        each.minorticks_off()
    return figure


def _mirror_losses(found: Geometry) -> Figure:
    mirror, settings = found.mirror, found.settings.mirror
    figure, (students, teachers) = grid(2, len(mirror.starts), 3.6, 3.2, sharey=True)
    colours = {weight: WEIGHTS[i % len(WEIGHTS)] for i, weight in enumerate(mirror.weights)}
    half, last = half_way_steps(found.settings.decay), min(settings.steps, 400)
    for pair in mirror.pairs:
        column = mirror.starts.index(pair.start.label)
        for each, points in ((students[column], pair.student), (teachers[column], pair.teacher)):
            each.plot(mirror_loss(points[: last + 1]), color=colours[pair.pull.weight], linewidth=1.4)
    for who, row in (("student", students), ("teacher", teachers)):
        for each, start in zip(row, mirror.starts, strict=True):
            each.axhline(settings.threshold, color="k", linewidth=0.6, linestyle=":")
            each.axvline(half, color="k", linewidth=0.8, linestyle="--")
            drawing.name(each, start, "step", f"loss of the {who}")
    handles = [Line2D([], [], color=colour, label=f"W = {weight:g}") for weight, colour in colours.items()]
    handles += [_line("--", f"ln 2 / -ln a = {half:.0f} steps"), _line(":", f"threshold {settings.threshold:g}")]
    legend_below(figure, handles, len(handles))
    figure.suptitle("Two mirror optima: losses of student and teacher")
    return figure


# ---------------------------------------------------------------------- steps to arrive


def _steps(found: Geometry) -> Figure:
    settings = found.settings.bowl
    starts = [*_colours(found.bowls[0])]
    height = 0.9 + 0.36 * (len(starts) + 1)
    figure, axes = grid(len(settings.weights), len(found.bowls), 4.8, height, sharey=True)
    medians = {(row.curvature, row.start, row.pull): row.median for row in found.directions}
    for row, weight in zip(axes, settings.weights, strict=True):
        pulls = ((Pull(weight), TEACHER, -0.2), (Pull(weight, settings.weight_time), STUDENT, 0.2))
        for each, bowl in zip(row, found.bowls, strict=True):
            _bar(each, 0, bowl.alone.arrival, settings.max_steps, ALONE)
            for place, start in enumerate(starts, 1):
                for pull, colour, offset in pulls:
                    _bar(each, place + offset, bowl.row(start, pull).arrival, settings.max_steps, colour)
                    median = medians.get((bowl.curvature, start, pull), np.inf)
                    if median < settings.max_steps:
                        each.plot(median, place + offset, "k|", markersize=7)
            each.set_yticks(range(len(starts) + 1), [NO_TEACHER, *starts])
            each.set_ylim(len(starts) + 0.6, -0.5)
            each.margins(x=0.14)
            drawing.name(each, f"{_name(bowl)}, W = {weight:g}", "steps")
    handles = [
        Patch(color=ALONE, label="no teacher"),
        Patch(color=TEACHER, label="constant weight"),
        Patch(color=STUDENT, label=f"weight decaying as exp(-t/{settings.weight_time:g})"),
        _line("", "median over all directions", marker="|", markersize=9),
    ]
    legend_below(figure, handles, 4)
    share = f"{100 * settings.tolerance:g} %"
    figure.suptitle(f"Steps until the student's distance stays below {share} of its first (number: of the bar)")
    return figure


def _bar(axes: Axes, place: float, steps: int | None, last: int, colour: str) -> None:
    width = last if steps is None else steps
    axes.barh(place, width, 0.38, color=colour, alpha=0.85)
    axes.text(width, place, f"  > {last:,}" if steps is None else f"  {steps:,}", va="center", fontsize=7)
