"""Figures of the geometry: paths, angles, distances, losses, steps to arrive, and an animation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import LogLocator
from PIL import Image

from dkel_lightning.runtime.atomic_files import naming
from dkel_lightning.studies import geometry
from dkel_lightning.studies.geometry import Bowl, Geometry, Pair, Pull
from dkel_lightning.studies.recursion import (
    Array,
    half_way_steps,
    mode_matrix,
    relative_distance,
    relative_distance_floor,
)

STUDENT, TEACHER, ALONE = "#1f77b4", "#d62728", "#7f7f7f"
STARTS = ("#1f77b4", "#17becf", "#9467bd", "#d62728", "#ff7f0e", "#bcbd22", "#2ca02c", "#006d2c", "#8c564b")
WEIGHTS = ("#7f7f7f", "#fdae61", "#f46d43", "#a50026", "#5e3c99", "#2c7fb8")
LineStyle = tuple[float, Sequence[float]] | Literal["-"]
SOLID: LineStyle = "-"
DASHED: LineStyle = (0, (4, 2))


def draw_all(found: Geometry, folder: Path) -> list[Path]:
    """Draw every figure into the folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "bowl_paths": _bowl_paths(found),
        "bowl_angle": _bowl_angle(found),
        "bowl_distance": _bowl_distance(found),
        "bowl_losses": _bowl_losses(found),
        "bowl_steps": _bowl_steps(found),
        "mirror_paths": _mirror_paths(found),
        "mirror_losses": _mirror_losses(found),
        "mirror_steps": _mirror_steps(found),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        _save(figure, paths[-1])
    return [*paths, _animate(found, folder / "paths.gif")]


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG of 128 colours, a third of the size of one of all."""
    canvas: Any = FigureCanvasAgg(figure)  # its methods are untyped
    canvas.draw()
    with naming(path):
        _paletted(canvas, 128).save(path, optimize=True)


def _paletted(canvas: Any, colours: int) -> Image.Image:
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).quantize(colours)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _grid(figure: Figure, rows: int, columns: int) -> list[list[Axes]]:
    axes = figure.subplots(rows, columns, squeeze=False)
    return [list(row) for row in axes]


def _drawn(found: Geometry) -> list[str]:
    """Name the starts whose paths are drawn: copy, own draw, and the longest initialisation."""
    bowl = found.settings.bowl
    steps = int(bowl.init_steps[-1])
    return [geometry.COPY, geometry.OWN, geometry.initialised_label(steps, bowl.init_lr_scale)]


def _first_pull(found: Geometry) -> Pull:
    return Pull(found.settings.bowl.weights[0])


def _starts(bowl: Bowl) -> list[str]:
    return list(dict.fromkeys(row.start for row in bowl.rows if row.start != geometry.NO_TEACHER))


def _colours(bowl: Bowl) -> dict[str, str]:
    return {start: STARTS[i % len(STARTS)] for i, start in enumerate(_starts(bowl))}


def _name(bowl: Bowl) -> str:
    return "round bowl" if bowl.curvature == 1 else f"bowl of curvatures 1 and {bowl.curvature:g}"


# ---------------------------------------------------------------------- the bowl


def _bowl_paths(found: Geometry) -> Figure:
    starts, pull = _drawn(found), _first_pull(found)
    figure = _figure(4 * len(starts), 4.1 * len(found.bowls) + 0.6)
    for row, bowl in zip(_grid(figure, len(found.bowls), len(starts)), found.bowls, strict=True):
        for axes, start in zip(row, starts, strict=True):
            _bowl_panel(axes, found, bowl, start, pull)
    figure.legend(handles=_path_legend(alone=True), loc="outside lower center", ncols=5, fontsize=9)
    figure.suptitle(f"Paths over {found.settings.bowl.steps} steps, {pull.label}")
    return figure


def _bowl_panel(axes: Axes, found: Geometry, bowl: Bowl, start: str, pull: Pull) -> None:
    steps = found.settings.bowl.steps
    pair, alone = bowl.pair(start, pull), bowl.pairs[0]
    radius = 1.18 * max(found.settings.bowl.radius, float(np.abs(pair.teacher[0]).max()))
    _contours(axes, bowl.loss, radius, np.linspace(0.02, 1, 10) ** 2 * 0.5 * radius**2)
    axes.plot(*alone.student[: steps + 1].T, color=ALONE, linewidth=1, linestyle=DASHED)
    _paths(axes, pair, steps)
    _chords(axes, pair, [int(step) for step in found.settings.bowl.chords if step <= steps])
    axes.plot(0, 0, "k*", markersize=9)
    axes.set_title(f"{_name(bowl)}\n{start}", fontsize=9)


def _contours(axes: Axes, loss: geometry.Gradient, radius: float, levels: Array) -> None:
    line = np.linspace(-radius, radius, 121)
    x, y = np.meshgrid(line, line)
    axes.contour(x, y, loss(np.stack([x, y], -1)), levels=levels, colors="0.82", linewidths=0.7)
    axes.set_aspect("equal")
    axes.set_xlim(-radius, radius)
    axes.set_ylim(-radius, radius)
    axes.tick_params(labelsize=7)


def _paths(axes: Axes, pair: Pair, steps: int) -> None:
    # The teacher's path lies under the student's where the two are one line.
    for points, colour, width in ((pair.teacher, TEACHER, 3.2), (pair.student, STUDENT, 1.4)):
        axes.plot(*points[: steps + 1].T, color=colour, linewidth=width)
        axes.plot(*points[0], "o", color=colour, markersize=5)


def _chords(axes: Axes, pair: Pair, steps: Sequence[int]) -> None:
    for step in steps:
        axes.plot(*np.stack([pair.student[step], pair.teacher[step]]).T, "k:", linewidth=1.1, marker=".", markersize=3)


def _path_legend(*, alone: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=STUDENT, marker="o", label="student (dot: start)"),
        Line2D([], [], color=TEACHER, marker="o", label="teacher"),
        Line2D([], [], color="k", linestyle=":", label="the two at one step"),
    ]
    if alone:
        handles.append(Line2D([], [], color=ALONE, linestyle=DASHED, label="student without a teacher"))
    return [*handles, Line2D([], [], color="k", marker="*", linestyle="", label="optimum")]


def _bowl_angle(found: Geometry) -> Figure:
    figure = _figure(4.2 * len(found.bowls), 4.6)
    pull, last = _first_pull(found), found.settings.bowl.steps
    for axes, bowl in zip(_grid(figure, 1, len(found.bowls))[0], found.bowls, strict=True):
        for start, colour in _colours(bowl).items():
            cosines = geometry.alignment(bowl.pair(start, pull))[1 : last + 1]
            axes.plot(np.arange(1, len(cosines) + 1), cosines, color=colour, label=start, linestyle=_dash(start))
        axes.axhline(0, color="k", linewidth=0.8)
        axes.text(0.98, 0.97, "towards the optimum", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.text(0.98, 0.47, "away from it", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.set_ylim(-1.05, 1.05)
        _finish(axes, _name(bowl), "step", "cos(teacher - student, optimum - student)", log_x=True)
    _legend_below(figure, _colours(found.bowls[0]))
    figure.suptitle(f"Where the teacher pulls, {pull.label}")
    return figure


def _dash(start: str) -> LineStyle:
    """Dash the released initialisation, which lies on the own draw without one."""
    released = geometry.initialised_label(geometry.RELEASED_STEPS, geometry.RELEASED_LR_SCALE)
    return DASHED if start == released else SOLID


def _legend_below(figure: Figure, colours: dict[str, str], extra: Sequence[Line2D] = ()) -> None:
    handles = [Line2D([], [], color=colour, label=name, linestyle=_dash(name)) for name, colour in colours.items()]
    figure.legend(handles=[*handles, *extra], loc="outside lower center", ncols=4, fontsize=8)


def _finish(axes: Axes, title: str, x: str, y: str, *, log_x: bool = False) -> None:
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()  # most of the time of drawing
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x + (" (log scale)" if log_x else ""), fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.grid(alpha=0.3)


def _bowl_distance(found: Geometry) -> Figure:
    figure = _figure(4.2 * len(found.bowls), 7.4)
    pull = _first_pull(found)
    last = min(10 * found.settings.bowl.steps, found.settings.bowl.max_steps)
    upper, lower = _grid(figure, 2, len(found.bowls))
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
        _finish(above, _name(bowl), "step", "distance |teacher - student|", log_x=True)
        _finish(below, _name(bowl), "step", "the same / |teacher - optimum| (log)", log_x=True)
    lines = [
        Line2D([], [], color="k", linestyle=":", label="h / (h + W) of the flatter direction"),
        Line2D([], [], color="k", linestyle=DASHED, label="its exact value at this EMA rate"),
    ]
    _legend_below(figure, _colours(found.bowls[0]), lines)
    figure.suptitle(f"How far apart teacher and student are, {pull.label}")
    return figure


def _bowl_losses(found: Geometry) -> Figure:
    figure = _figure(4.2 * len(found.bowls), 4.6)
    pull, last = _first_pull(found), found.settings.bowl.steps
    for axes, bowl in zip(_grid(figure, 1, len(found.bowls))[0], found.bowls, strict=True):
        for start, colour in _colours(bowl).items():
            pair = bowl.pair(start, pull)
            gap = bowl.loss(pair.teacher[: last + 1]) - bowl.loss(pair.student[: last + 1])
            axes.plot(gap, color=colour, linestyle=_dash(start))
        axes.axhline(0, color="k", linewidth=0.8)
        _finish(axes, _name(bowl), "step", "loss of the teacher - loss of the student")
        axes.text(0.98, 0.97, "teacher worse", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.text(0.98, 0.03, "teacher better", transform=axes.transAxes, ha="right", va="bottom", fontsize=8)
    _legend_below(figure, _colours(found.bowls[0]))
    figure.suptitle(f"Is the teacher better than its student? {pull.label}")
    return figure


def _bowl_steps(found: Geometry) -> Figure:
    weights = found.settings.bowl.weights
    starts = len(_starts(found.bowls[0]))
    figure = _figure(2.4 + 4.0 * len(found.bowls), 0.9 + len(weights) * (0.9 + 0.36 * (starts + 1)))
    for row, weight in zip(_grid(figure, len(weights), len(found.bowls)), weights, strict=True):
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
    axes.set_yticks(range(len(starts) + 1), [geometry.NO_TEACHER, *starts], fontsize=8)
    axes.set_ylim(len(starts) + 0.6, -0.5)
    axes.set_xlim(0, 1.14 * longest)
    _finish(axes, f"{_name(bowl)}, W = {weight:g}", "steps", "")


# ---------------------------------------------------------------------- two mirror optima


def _mirror_paths(found: Geometry) -> Figure:
    mirror = found.mirror
    figure = _figure(3.1 * len(mirror.weights), 3.2 * len(mirror.starts) + 0.6)
    grid = _grid(figure, len(mirror.starts), len(mirror.weights))
    by_key = {(pair.start.label, pair.pull.weight): pair for pair in mirror.pairs}
    for row, start in zip(grid, mirror.starts, strict=True):
        for axes, weight in zip(row, mirror.weights, strict=True):
            _mirror_panel(axes, found, by_key[start, weight])
            axes.label_outer()
            axes.set_title(f"{start}\nW = {weight:g}", fontsize=9)
    figure.legend(handles=_mirror_legend(), loc="outside lower center", ncols=5, fontsize=9)
    figure.suptitle(f"Two mirror optima: paths over {found.settings.mirror.steps} steps")
    return figure


def _mirror_legend() -> list[Line2D]:
    return [
        *_path_legend(alone=False)[:3],
        Line2D([], [], color="k", linewidth=0.8, label="optima, u v = 1"),
        Line2D([], [], color="k", marker="x", linestyle="", label="saddle"),
    ]


def _mirror_panel(axes: Axes, found: Geometry, pair: Pair) -> None:
    radius = _mirror_radius(found)
    _contours(axes, geometry.mirror_loss, radius, np.array([0.02, 0.1, 0.25, 0.45, 0.55, 0.8, 1.2]))
    line = np.linspace(1 / radius, radius, 80)
    for sign in (1, -1):
        axes.plot(sign * line, sign / line, color="k", linewidth=0.8)
    axes.plot(0, 0, "kx", markersize=5)
    _paths(axes, pair, len(pair.student) - 1)
    # The bowl's steps, and later ones: crossing a barrier takes longer.
    steps = [int(step) for step in found.settings.bowl.chords]
    _chords(axes, pair, [step for step in steps if step < len(pair.student)])


def _mirror_radius(found: Geometry) -> float:
    mirror = found.settings.mirror
    return max(1.5, 1.2 * float(np.abs([*mirror.student, *mirror.trained, *mirror.untrained]).max()))


def _mirror_losses(found: Geometry) -> Figure:
    mirror = found.mirror
    figure = _figure(3.6 * len(mirror.starts), 6.2)
    students, teachers = _grid(figure, 2, len(mirror.starts))
    colours = {weight: WEIGHTS[i % len(WEIGHTS)] for i, weight in enumerate(mirror.weights)}
    last = min(found.settings.mirror.steps, 400)
    for pair in mirror.pairs:
        column = mirror.starts.index(pair.start.label)
        for axes, points in ((students[column], pair.student), (teachers[column], pair.teacher)):
            losses = geometry.mirror_loss(points[: last + 1])
            axes.plot(losses, color=colours[pair.pull.weight], linewidth=1.4)
    top = 1.05 * max(
        float(geometry.mirror_loss(p).max()) for pair in mirror.pairs for p in (pair.student, pair.teacher)
    )
    half = half_way_steps(found.settings.decay)
    for who, row in (("student", students), ("teacher", teachers)):
        for axes, start in zip(row, mirror.starts, strict=True):
            axes.set_ylim(-0.02, top)
            axes.axhline(found.settings.mirror.threshold, color="k", linewidth=0.6, linestyle=":")
            axes.axvline(half, color="k", linewidth=0.8, linestyle=DASHED)
            _finish(axes, start, "step", f"loss of the {who}")
    handles = [Line2D([], [], color=colour, label=f"W = {weight:g}") for weight, colour in colours.items()]
    handles += [Line2D([], [], color="k", linestyle=DASHED, label=f"ln 2 / -ln a = {half:.0f} steps")]
    handles += [Line2D([], [], color="k", linestyle=":", label=f"threshold {found.settings.mirror.threshold:g}")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    figure.suptitle("Two mirror optima: losses of student and teacher")
    return figure


def _mirror_steps(found: Geometry) -> Figure:
    mirror = found.mirror
    figure = _figure(9, 0.9 + 0.34 * len(mirror.rows))
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
    _finish(axes, f"Steps until the student's loss stays below {threshold:g}", "steps", "")
    return figure


# ---------------------------------------------------------------------- animation


def _animate(found: Geometry, path: Path) -> Path:
    """Show the drawn starts in the second bowl (or the only one) and a crossing, as a GIF."""
    bowl = found.bowls[min(1, len(found.bowls) - 1)]
    pull, starts = _first_pull(found), _drawn(found)
    weight = next((weight for weight in found.mirror.weights if weight >= 1), found.mirror.weights[-1])
    crossing = next(
        pair for pair in found.mirror.pairs if (pair.start.label, pair.pull.weight) == (geometry.TRAINED_MIRROR, weight)
    )
    pairs = [*(bowl.pair(start, pull) for start in starts), crossing]
    figure = Figure(figsize=(3 * len(pairs), 3.3), dpi=75, layout="constrained")
    panels = _grid(figure, 1, len(pairs))[0]
    radius = 1.18 * found.settings.bowl.radius
    for axes, pair in zip(panels[:-1], pairs[:-1], strict=True):
        _contours(axes, bowl.loss, radius, np.linspace(0.02, 1, 8) ** 2 * 0.5 * radius**2)
        axes.plot(0, 0, "k*", markersize=9)
        axes.set_title(f"{pair.start.label}, {pull.label}", fontsize=9)
    _contours(panels[-1], geometry.mirror_loss, _mirror_radius(found), np.array([0.02, 0.1, 0.25, 0.45, 0.8]))
    panels[-1].set_title(f"{crossing.start.label}, W = {weight:g}", fontsize=9)
    moving = [_moving(axes) for axes in panels]
    last = min(found.settings.bowl.steps, 120, *(len(pair.student) - 1 for pair in pairs))
    # Early steps one by one, where most happens.
    steps = [*range(0, min(20, last)), *range(min(20, last), last + 1, 3)]
    caption = figure.suptitle("student blue, teacher red", fontsize=10)
    frames = list(_frames(figure, caption, list(zip(pairs, moving, strict=True)), steps))
    durations = [100] * (len(frames) - 1) + [1500]
    with naming(path):
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


def _frames(
    figure: Figure, caption: Text, moving: Sequence[tuple[Pair, Sequence[Line2D]]], steps: Sequence[int]
) -> Iterator[Image.Image]:
    """Draw what stands still once, and on it what moves: contours and layout are what takes long."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    caption.set_visible(False)
    figure.set_layout_engine("none")
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    caption.set_visible(True)
    for step in steps:
        canvas.restore_region(background)
        for pair, lines in moving:
            ends = np.stack([pair.student[step], pair.teacher[step]])
            for line, points in zip(lines, (pair.student[: step + 1], pair.teacher[: step + 1], ends), strict=True):
                line.set_data(*points.T)
                figure.draw_artist(line)
        caption.set_text(f"student blue, teacher red: step {step}")
        figure.draw_artist(caption)
        yield _paletted(canvas, 64)


def _moving(axes: Axes) -> list[Line2D]:
    def line(style: str, **options: float | str) -> Iterator[Line2D]:
        yield from axes.plot([], [], style, **options)  # type: ignore[arg-type]

    return [
        *line("-", color=STUDENT, linewidth=1.6),
        *line("-", color=TEACHER, linewidth=1.6),
        *line("k:", linewidth=1.2, marker=".", markersize=5),
    ]
