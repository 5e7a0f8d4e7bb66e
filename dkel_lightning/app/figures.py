"""Figures of a run, drawn from its metrics."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dkel_lightning.runtime.atomic_files import write_bytes

Rows = Mapping[int, Mapping[str, float]]

COLOURS = {"student": "#1f77b4", "teacher": "#d62728", "ensemble": "#2ca02c", "teacher_ensemble": "#ff7f0e"}
TERM_NAMES = {
    "train/ce": "labels to peers",
    "train/ce_ensemble": "labels to ensemble",
    "train/kd_ensemble": "ensemble to peers",
    "train/kd_individual": "individual teachers to peers",
    "train/kd_peers": "peers to peers",
    "train/kd_leader": "peers to leader",
    "train/kd_fusion": "peers to fusion",
    "train/kd_target": "common target to peers",
    "train/consistency": "teacher to student",
    "train/kd_assembled": "assembled teachers to peers",
}


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG, whole at any moment."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    write_bytes(path, drawn.getvalue())


def draw_curves(rows: Rows, path: Path, title: str) -> None:
    """Draw accuracies, likelihoods, loss terms and weights over the epochs into a PNG."""
    epochs = {step: row["epoch"] + 1 for step, row in rows.items() if "epoch" in row}
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    _networks(axes[0][0], rows, epochs, "acc", "validation accuracy")
    _networks(axes[0][1], rows, epochs, "nll", "validation negative log-likelihood")
    _terms(axes[1][0], rows, epochs)
    _weights(axes[1][1], rows, epochs)
    figure.suptitle(title)
    save(figure, path)


def _series(rows: Rows, epochs: Mapping[int, float], name: str) -> tuple[list[float], list[float]]:
    points = [(epochs[step], row[name]) for step, row in sorted(rows.items()) if name in row and step in epochs]
    return [point[0] for point in points], [point[1] for point in points]


def _networks(axes: Axes, rows: Rows, epochs: Mapping[int, float], metric: str, label: str) -> None:
    names = {name for row in rows.values() for name in row if name.startswith(f"val/{metric}/")}
    for kind, colour in COLOURS.items():
        prefix = f"val/{metric}/{kind}"
        peers = sorted(name for name in names if name.startswith(f"{prefix}_") and name[len(prefix) + 1 :].isdigit())
        for peer in peers:
            axes.plot(*_series(rows, epochs, peer), color=colour, alpha=0.3, linewidth=1)
        main = f"{prefix}_mean" if f"{prefix}_mean" in names else prefix
        if main in names:
            suffix = " (mean of peers)" if main != prefix else ""
            axes.plot(*_series(rows, epochs, main), color=colour, label=kind.replace("_", " ") + suffix)
    _finish(axes, label, legend=bool(names))


def _terms(axes: Axes, rows: Rows, epochs: Mapping[int, float]) -> None:
    known = {name for row in rows.values() for name in row if name.startswith("train/") and "/acc/" not in name}
    known -= {"train/loss_per_peer"}
    for name in sorted(known, key=lambda name: (name != "train/loss", name)):
        axes.plot(*_series(rows, epochs, name), label=TERM_NAMES.get(name, name.removeprefix("train/")))
    axes.set_yscale("symlog", linthresh=0.01)
    _finish(axes, "loss terms (weighted, summed over peers)", legend=bool(known))


def _weights(axes: Axes, rows: Rows, epochs: Mapping[int, float]) -> None:
    known = sorted({name for row in rows.values() for name in row if name.startswith("weights/")})
    for name in known:
        axes.plot(*_series(rows, epochs, name), label=name.removeprefix("weights/").replace("_", " "))
    _finish(axes, "weights in force at the end of the epoch", legend=bool(known))


def _finish(axes: Axes, label: str, *, legend: bool) -> None:
    axes.set_xlabel("epoch")
    axes.set_title(label, fontsize=10)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=8)


def draw_comparison(accuracies: Mapping[str, Sequence[float]], reference: str, path: Path) -> None:
    """Draw the test accuracies of each label into a PNG: a dot a seed, a bar at the mean."""
    figure = Figure(figsize=(8, 1.4 + 0.42 * len(accuracies)), layout="constrained")
    axes = figure.subplots()
    for row, (label, values) in enumerate(accuracies.items()):
        colour = COLOURS["teacher"] if label == reference else COLOURS["student"]
        shown = [100 * value for value in values]
        axes.plot(shown, [row] * len(shown), "o", color=colour, alpha=0.45, markersize=6)
        if shown:
            axes.plot(sum(shown) / len(shown), row, "|", color=colour, markersize=20, markeredgewidth=2.5)
    if accuracies.get(reference):
        mean = 100 * sum(accuracies[reference]) / len(accuracies[reference])
        axes.axvline(mean, color=COLOURS["teacher"], linewidth=0.8, linestyle="--", zorder=0)
    axes.set_yticks(range(len(accuracies)), [*accuracies])
    axes.set_ylim(len(accuracies) - 0.5, -0.5)
    axes.set_xlabel("test accuracy of the deployed network, selected epoch (%); a dot a seed, a bar at the mean")
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def draw_views(views: NDArray[np.uint8], path: Path) -> None:
    """Put views [B, V, C, H, W] into a PNG, a row a view, a column an image, enlarged if they are small."""
    samples, rows, channels, height, width = views.shape
    scale, gap = max(1, round(64 / max(height, width))), 2
    large = np.repeat(np.repeat(views, scale, axis=3), scale, axis=4)
    high, wide = large.shape[3] + gap, large.shape[4] + gap
    sheet = np.full((rows * high - gap, samples * wide - gap, 3), 255, dtype=np.uint8)
    for column, row in itertools.product(range(samples), range(rows)):
        # Of other numbers of channels than one and three the first is shown.
        image = large[column, row] if channels == 3 else large[column, row, :1].repeat(3, axis=0)
        place = sheet[row * high : row * high + high - gap, column * wide : column * wide + wide - gap]
        place[:] = image.transpose(1, 2, 0)
    drawn = io.BytesIO()
    Image.fromarray(sheet).save(drawn, "PNG")
    write_bytes(path, drawn.getvalue())


MOST_NAMED_CLASSES = 25


def draw_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Draw how often images of each class (rows) are given each class (columns), as shares of the row, into a PNG."""
    matrix = np.asarray(counts, dtype=float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    few = len(names) <= MOST_NAMED_CLASSES
    size = min(11.0, 3.5 + 0.38 * len(names)) if few else 9.0
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    # The root keeps rare mistakes visible beside a full diagonal.
    drawn = axes.imshow(np.sqrt(shares), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    if few:
        short = [name if len(name) <= 14 else f"{name[:13]}…" for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90)
        axes.set_yticks(range(len(names)), short)
        for row, column in itertools.product(range(len(names)), repeat=2):
            if matrix[row, column]:
                colour = "black" if shares[row, column] > 0.5 else "white"
                axes.text(column, row, f"{matrix[row, column]:.0f}", color=colour, ha="center", va="center", fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    ticks = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, ticks=[tick**0.5 for tick in ticks])
    bar.ax.set_yticklabels([f"{100 * tick:g} %" for tick in ticks])
    bar.set_label("share of the true class")
    save(figure, path)


# ---------------------------------------------------------------------- sweeps

Setting = tuple[str, ...]
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX*"
EVEN_FROM = 8
"""Numbers whose range is this many times their smallest step are drawn at even steps, or the small ones would merge."""


def draw_sweep(panels: Mapping[str, Mapping[Setting, Sequence[float]]], keys: Sequence[str], path: Path) -> None:
    """Draw figures against what was varied into a PNG: a dot a seed, a bar at the mean, a line where it is a number.

    Args:
        panels: by label, the values of each setting over its seeds.
        keys: what was varied; the first is the horizontal axis, the others make the series.
        path: of the PNG.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    first = next(iter(panels.values()))
    axis = _axis([*dict.fromkeys(setting[0] if setting else "" for setting in first)])
    series = [*dict.fromkeys(setting[1:] for setting in first)]
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows + 0.5), layout="constrained")
    for axes, (label, values) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=False):
        for number, rest in enumerate(series):
            _dots(axes, values, rest, axis, number, len(series))
        axes.set_xticks([*axis.places.values()], [*axis.places])
        if max(map(len, axis.places)) * len(axis.places) > 45:
            for tick in axes.get_xticklabels():
                tick.set(rotation=20, horizontalalignment="right", rotation_mode="anchor")
        axes.margins(x=0.12)
        axes.set_xlabel((keys[0] if keys else "") + axis.note)
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
    if len(series) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        named = [", ".join(f"{k}={v}" for k, v in zip(keys[1:], rest, strict=True)) for rest in series]
        assert len(labels) == len(named)
        figure.legend(handles, named, loc="outside lower center", ncols=1 if len(named[0]) > 45 else 2, fontsize=8)
    save(figure, path)


@dataclass(frozen=True)
class SweepAxis:
    """Where the values of a sweep lie.

    Attributes:
        places: by value as it is written, from left to right.
        numeric: whether a line between neighbours means something.
        note: what the axis label must add.
    """

    places: Mapping[str, float]
    numeric: bool
    note: str = ""

    @property
    def step(self) -> float:
        """The smallest distance of neighbours, 1 where there are none."""
        return min((after - before for before, after in itertools.pairwise(self.places.values())), default=1.0)


def _axis(values: Sequence[str]) -> SweepAxis:
    """Place values on an axis: numbers by their size, at even steps where these differ much, words as they come."""
    try:
        ordered = sorted(values, key=float)
    except ValueError:
        return SweepAxis({value: float(position) for position, value in enumerate(values)}, numeric=False)
    found = SweepAxis({value: float(value) for value in ordered}, numeric=True)
    if len(ordered) < 3 or float(ordered[-1]) - float(ordered[0]) < EVEN_FROM * found.step:
        return found
    return SweepAxis({value: float(place) for place, value in enumerate(ordered)}, numeric=True, note=" (even steps)")


def _dots(
    axes: Axes,
    values: Mapping[Setting, Sequence[float]],
    rest: Setting,
    axis: SweepAxis,
    number: int,
    of: int,
) -> None:
    """Draw one series, beside the others rather than over them."""
    shift = axis.step * 0.6 * ((number + 0.5) / of - 0.5)
    colour, marker = _colour(number, of), MARKERS[number % len(MARKERS)]
    at, means = [], []
    for value, place in axis.places.items():
        found = values.get(((value,) if value or rest else ()) + rest, ())
        axes.plot([place + shift] * len(found), found, marker, color=colour, alpha=0.4, markersize=4, markeredgewidth=0)
        if found:
            at.append(place + shift)
            means.append(sum(found) / len(found))
    axes.plot(
        at,
        means,
        "_",
        color=colour,
        linestyle="-" if axis.numeric else "none",
        linewidth=1,
        markersize=11,
        markeredgewidth=2.5,
        label=str(rest),
    )


def _colour(number: int, of: int) -> Any:
    if of <= 10:
        return colormaps["tab10"](number)
    return colormaps["viridis"](number / (of - 1))


def draw_search(points: Sequence[tuple[Sequence[str], float]], keys: Sequence[str], path: Path) -> None:
    """Draw what a search has found into a PNG: a panel a key, a dot a job, the best one marked.

    Args:
        points: the values of the keys, as written, and what was reached; the best first.
        keys: what was searched.
        path: of the PNG.
    """
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.6, 3.2 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for number, axes in enumerate(grid):
        axes.set_visible(number < len(keys))
        if number >= len(keys):
            continue
        values = [point[0][number] for point in points]
        places = _numbers(values)
        if places is None:
            names = sorted(set(values))
            places = [float(names.index(value)) for value in values]
            axes.set_xticks(range(len(names)), names)
        elif min(places) > 0 and max(places) > EVEN_FROM * min(places):
            axes.set_xscale("log")
        reached = [point[1] for point in points]
        axes.plot(places, reached, "o", color=COLOURS["student"], alpha=0.5, markersize=5)
        axes.plot(places[:1], reached[:1], "o", color=COLOURS["teacher"], markersize=8)
        axes.set_xlabel(keys[number])
        axes.set_ylabel("validation accuracy (%)")
        axes.grid(alpha=0.3)
    save(figure, path)


def _numbers(values: Sequence[str]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def draw_sweep_curves(
    panels: Mapping[str, Mapping[Setting, tuple[Sequence[float], Sequence[float]]]], keys: Sequence[str], path: Path
) -> None:
    """Draw the mean course of each setting into a PNG.

    Args:
        panels: by label, epochs and values of each setting; a row each.
        keys: what was varied, at most three: colours, (of three) line styles, columns of panels.
        path: of the PNG.
    """
    settings = [*dict.fromkeys(setting for values in panels.values() for setting in values)]
    roles = (slice(0, 1), slice(1, 2) if len(keys) > 2 else slice(0, 0), slice(max(1, len(keys) - 1), None))
    colours, styles, columns = ([*dict.fromkeys(setting[role] for setting in settings)] for role in roles)
    figure = Figure(figsize=(max(6.5, 3.6 * len(columns) + 1), 2.1 * len(panels) + 0.8), layout="constrained")
    grid = figure.subplots(len(panels), len(columns), squeeze=False, sharex=True, sharey="row")
    for row, (label, values) in zip(grid, panels.items(), strict=True):
        row[0].set_ylabel(label, fontsize=9)
        for axes in row:
            axes.grid(alpha=0.3)
        for setting, (epochs, course) in values.items():
            colour, style, column = (setting[role] for role in roles)
            row[columns.index(column)].plot(
                epochs,
                course,
                color=_shade(colours.index(colour), len(colours)),
                linestyle=LINE_STYLES[styles.index(style) % len(LINE_STYLES)],
                label=", ".join(colour + style),
            )
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title("".join(f"{keys[-1]}={value}" for value in column), fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    if keys:
        varied = ", ".join(keys[:-1] if len(keys) > 1 else keys)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, title=varied, title_fontsize=8)
    save(figure, path)


def _shade(number: int, of: int) -> Any:
    """Shade lines of an ordered quantity, leaving out the palest end."""
    return colormaps["viridis"](0.9 * number / max(1, of - 1))
