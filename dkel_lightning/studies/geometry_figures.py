"""Figures of task=geometry: paths, angles, distances and losses of student and teacher, and steps to arrive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dkel_lightning.studies import geometry as study
from dkel_lightning.studies.geometry import ALONE, COPY, CURVATURES, MIRROR_WEIGHTS, NO_TEACHER, OWN, PULLS, Geometry
from dkel_lightning.studies.output import COLOURS, grid, styled
from dkel_lightning.studies.pairs import Pair, alignment, norm
from dkel_lightning.studies.recursion import Array, half_way_steps, mode_matrix, relative_distance

STUDENT, TEACHER, GREY = COLOURS[0], COLOURS[3], COLOURS[7]
SHOWN, COURSE = 150, 1500
"""Steps of the paths, and of the courses."""


@styled
def draw(geometry: Geometry) -> dict[str, Figure]:
    """Draw every figure, by name."""
    return {
        "bowl_paths": _bowl_paths(geometry),
        "bowl_courses": _bowl_courses(geometry),
        "bowl_steps": _bowl_steps(geometry),
        "mirror_paths": _mirror_paths(geometry),
        "mirror_losses": _mirror_losses(geometry),
    }


def _bowl_name(curvature: float) -> str:
    return "round bowl" if curvature == 1 else f"bowl of curvatures 1 and {curvature:g}"


# ---------------------------------------------------------------------- paths


def _bowl_paths(geometry: Geometry) -> Figure:
    starts = [COPY, OWN, study.trained_label(geometry.settings.init_steps)]
    figure, rows = grid(len(CURVATURES), len(starts), 4, 4.3)
    for row, curvature in zip(rows, CURVATURES, strict=True):
        loss = partial(study.bowl_loss, curvature=curvature)
        for axes, start in zip(row, starts, strict=True):
            _contours(axes, loss, 1.18 * study.RADIUS, 2 * np.linspace(0.02, 1, 10) ** 2)
            axes.plot(*geometry.bowls[curvature, NO_TEACHER, ALONE].student[: SHOWN + 1].T, "--", color=GREY)
            _paths(axes, geometry.bowls[curvature, start, PULLS[0]])
            axes.plot(0, 0, "k*", markersize=9)
            axes.set_title(f"{_bowl_name(curvature)}\n{start}")
    _path_legend(figure, Line2D([], [], color=GREY, linestyle="--", label="student without a teacher"))
    figure.suptitle(f"Paths over {SHOWN} steps, {PULLS[0].label}; star: optimum")
    return figure


def _mirror_paths(geometry: Geometry) -> Figure:
    starts = list(dict.fromkeys(start for start, _ in geometry.mirror))
    figure, rows = grid(len(starts), len(MIRROR_WEIGHTS), 3.1, 3.3)
    line = np.linspace(0.6, 1.6, 80)
    for row, start in zip(rows, starts, strict=True):
        for axes, weight in zip(row, MIRROR_WEIGHTS, strict=True):
            _contours(axes, study.mirror_loss, 1.6, np.array([0.02, 0.1, 0.25, 0.45, 0.55, 0.8, 1.2]))
            for sign in (1, -1):
                axes.plot(sign * line, sign / line, "k", linewidth=0.8)
            axes.plot(0, 0, "kx", markersize=5)
            _paths(axes, geometry.mirror[start, weight])
            axes.label_outer()
            axes.set_title(f"{start}\nW = {weight:g}")
    _path_legend(figure, Line2D([], [], color="k", linewidth=0.8, label="optima, u v = 1"))
    figure.suptitle("Two mirror optima: paths; cross: saddle")
    return figure


def _contours(axes: Axes, loss: Callable[[Array], Array], radius: float, levels: Array) -> None:
    line = np.linspace(-radius, radius, 121)
    x, y = np.meshgrid(line, line)
    axes.contour(x, y, loss(np.stack([x, y], -1)), levels=levels, colors="0.82", linewidths=0.7)
    axes.set(aspect="equal", xlim=(-radius, radius), ylim=(-radius, radius))


def _paths(axes: Axes, pair: Pair) -> None:
    # The teacher's path lies under the student's where the two are one line.
    for points, colour, width in ((pair.teacher, TEACHER, 3.2), (pair.student, STUDENT, 1.4)):
        axes.plot(*points[: SHOWN + 1].T, color=colour, linewidth=width)
        axes.plot(*points[0], "o", color=colour, markersize=5)
    for step in (1, 5, 15, 40):
        axes.plot(*np.stack([pair.student[step], pair.teacher[step]]).T, "k:", linewidth=1.1, marker=".", markersize=3)


def _path_legend(figure: Figure, other: Line2D) -> None:
    student = Line2D([], [], color=STUDENT, marker="o", label="student (dot: start)")
    teacher = Line2D([], [], color=TEACHER, marker="o", label="teacher")
    chord = Line2D([], [], color="k", linestyle=":", label="both after 1, 5, 15, 40 steps")
    figure.legend(handles=[student, teacher, chord, other], loc="outside lower center", ncols=4)


# ---------------------------------------------------------------------- courses


def _bowl_courses(geometry: Geometry) -> Figure:
    figure, rows = grid(4, len(CURVATURES), 4.2, 3.2)
    starts = list(dict.fromkeys(start for _, start, _ in geometry.bowls if start != NO_TEACHER))
    titles = ("cos(teacher - student, optimum - student)", "|teacher - student|", "the same / |teacher - optimum|")
    steps = np.arange(1, COURSE + 1)
    for column, curvature in enumerate(CURVATURES):
        for number, start in enumerate(starts):
            pair = geometry.bowls[curvature, start, PULLS[0]]
            losses = [study.bowl_loss(points, curvature) for points in (pair.teacher, pair.student)]
            # The released initialisation lies on the own draw without one.
            style = "--" if "0.01" in start else "-"
            relative = pair.distance / np.maximum(norm(pair.teacher), 1e-300)
            courses = (alignment(pair), pair.distance, relative, losses[0] - losses[1])
            for row, values in zip(rows, courses, strict=True):
                row[column].plot(steps, values[steps], style, color=COLOURS[number], label=start)
        lr, decay, weight = geometry.settings.lr, geometry.settings.decay, PULLS[0].weight
        exact = relative_distance(mode_matrix(curvature, weight, lr, decay, weight))
        rows[2][column].axhline(exact, color="k", linewidth=0.8, linestyle=":")
        rows[2][column].set(yscale="log", ylim=(0.2 * exact, 5))
        for row, title in zip(rows, (*titles, "loss of teacher - loss of student"), strict=True):
            row[column].set(xscale="log", xlabel="step", title=_bowl_name(curvature), ylabel="" if column else title)
    figure.suptitle(f"Student and teacher in a bowl, {PULLS[0].label}; dotted: final value, about h / (h + W)")
    return figure


def _mirror_losses(geometry: Geometry) -> Figure:
    starts = list(dict.fromkeys(start for start, _ in geometry.mirror))
    figure, rows = grid(2, len(starts), 3.6, 3.2, sharey=True)
    half = half_way_steps(geometry.settings.decay)
    for (start, weight), pair in geometry.mirror.items():
        column = starts.index(start)
        for row, points, who in zip(rows, (pair.student, pair.teacher), ("student", "teacher"), strict=True):
            row[column].plot(study.mirror_loss(points[:400]), label=f"W = {weight:g}")
            row[column].axvline(half, color="k", linewidth=0.8, linestyle="--")
            row[column].set(title=start, xlabel="step", ylabel="" if column else f"loss of the {who}")
    figure.suptitle(f"Two mirror optima: losses; dashed: ln 2 / -ln a = {half:.0f} steps")
    return figure


def _bowl_steps(geometry: Geometry) -> Figure:
    starts = list(dict.fromkeys(start for _, start, _ in geometry.bowls if start != NO_TEACHER))
    figure, rows = grid(2, len(CURVATURES), 4.8, 3.8, sharey=True)
    for row, pulls in zip(rows, (PULLS[:2], PULLS[2:]), strict=True):
        for axes, curvature in zip(row, CURVATURES, strict=True):
            bars = [(0.0, NO_TEACHER, ALONE, GREY)]
            for row_number, start in enumerate(starts, 1):
                bars += [(row_number - 0.2, start, pulls[0], TEACHER), (row_number + 0.2, start, pulls[1], STUDENT)]
            for place, start, pull, colour in bars:
                steps = geometry.bowl_rows[curvature, start, pull]["steps_to_distance"]
                width, text = (study.MAX_STEPS, f"  > {study.MAX_STEPS}") if steps is None else (steps, f"  {steps}")
                axes.barh(place, width, 0.38, color=colour, label=pull.label if place < 1.5 else None)
                axes.text(width, place, text, va="center", fontsize=7)
            axes.set_yticks(range(len(starts) + 1), [NO_TEACHER, *starts])
            axes.set(ylim=(len(starts) + 0.6, -0.5), title=f"{_bowl_name(curvature)}, W = {pulls[0].weight:g}")
            axes.margins(x=0.14)
            axes.set_xlabel("steps")
    figure.suptitle(f"Steps until the student's distance stays below {study.ARRIVED:.0%} of its first")
    return figure
