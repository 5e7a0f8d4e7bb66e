"""Figures of the geometry: those of the bowl and of the mirror optima, and an animation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from dkel_lightning.app.study_figures import bowl_figures, mirror_figures
from dkel_lightning.app.study_figures.mirror_figures import mirror_radius
from dkel_lightning.app.study_figures.plane import (
    STUDENT,
    TEACHER,
    axes_grid,
    contours,
    drawn_starts,
    first_pull,
    paletted,
)
from dkel_lightning.runtime.atomic_files import naming
from dkel_lightning.studies.geometry import Geometry
from dkel_lightning.studies.mirror import TRAINED_MIRROR, mirror_loss
from dkel_lightning.studies.pairs import Pair


def draw_all(found: Geometry, folder: Path) -> list[Path]:
    """Draw every figure into the folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in (bowl_figures.draw(found) | mirror_figures.draw(found)).items():
        paths.append(folder / f"{name}.png")
        _save(figure, paths[-1])
    return [*paths, _animate(found, folder / "paths.gif")]


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG of 128 colours, a third of the size of one of all."""
    canvas: Any = FigureCanvasAgg(figure)  # its methods are untyped
    canvas.draw()
    with naming(path):
        paletted(canvas, 128).save(path, optimize=True)


def _animate(found: Geometry, path: Path) -> Path:
    """Show the drawn starts in the second bowl (or the only one) and a crossing, as a GIF."""
    bowl = found.bowls[min(1, len(found.bowls) - 1)]
    pull, starts = first_pull(found), drawn_starts(found)
    weight = next((weight for weight in found.mirror.weights if weight >= 1), found.mirror.weights[-1])
    crossing = next(
        pair for pair in found.mirror.pairs if (pair.start.label, pair.pull.weight) == (TRAINED_MIRROR, weight)
    )
    pairs = [*(bowl.pair(start, pull) for start in starts), crossing]
    figure = Figure(figsize=(3 * len(pairs), 3.3), dpi=75, layout="constrained")
    panels = axes_grid(figure, 1, len(pairs))[0]
    radius = 1.18 * found.settings.bowl.radius
    for axes, pair in zip(panels[:-1], pairs[:-1], strict=True):
        contours(axes, bowl.loss, radius, np.linspace(0.02, 1, 8) ** 2 * 0.5 * radius**2)
        axes.plot(0, 0, "k*", markersize=9)
        axes.set_title(f"{pair.start.label}, {pull.label}", fontsize=9)
    contours(panels[-1], mirror_loss, mirror_radius(found), np.array([0.02, 0.1, 0.25, 0.45, 0.8]))
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
        yield paletted(canvas, 64)


def _moving(axes: Axes) -> list[Line2D]:
    def line(style: str, **options: float | str) -> Iterator[Line2D]:
        yield from axes.plot([], [], style, **options)  # type: ignore[arg-type]

    return [
        *line("-", color=STUDENT, linewidth=1.6),
        *line("-", color=TEACHER, linewidth=1.6),
        *line("k:", linewidth=1.2, marker=".", markersize=5),
    ]
