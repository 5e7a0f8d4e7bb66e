"""Figures of a run, and of groups of runs. What draws gives the figure; `drawing.save` writes it.

What is measured over the epochs has the names of the columns of metrics.csv (`modules/scores` says which):
`TITLES` and `COURSES` say what they are called on an axis. What a finished run has reached has names in words
(`runs/records`), such as "selected NLL": `FIGURES` says what these are called, and a `Column` how a table has them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from dkel_lightning.app import drawing
from dkel_lightning.app.drawing import STUDENT, TEACHER, colour, panels, plain, styled
from dkel_lightning.app.runs.groups import COMPARED, Group
from dkel_lightning.app.runs.parsing import Curve

COLOURS = {"student": STUDENT, "teacher": TEACHER, "ensemble": "#2ca02c", "teacher_ensemble": "#ff7f0e"}
COLOURS |= {"student_ensemble": "#17becf", "student-teacher": "#9467bd", "student-student": STUDENT}
COLOURS |= {"teacher-teacher": TEACHER, "deployed": "#7f7f7f"}
TERM_NAMES = {
    "loss": "total",
    "ce": "labels to peers",
    "ce_ensemble": "labels to ensemble",
    "kd_ensemble": "ensemble to peers",
    "kd_individual": "individual teachers to peers",
    "kd_peers": "peers to peers",
    "kd_leader": "peers to leader",
    "kd_fusion": "peers to fusion",
    "kd_target": "common target to peers",
    "consistency": "teacher to student",
    "kd_assembled": "assembled teachers to peers",
}
TITLES = {
    "val/acc": "validation accuracy (%)",
    "val/nll": "validation negative log-likelihood (nats)",
    "val/ece": "validation calibration error (%)",
    "train": "loss terms, weighted, summed over peers",
    "train/acc": "training accuracy (%)",
    "weights": "weights in force at the end of the epoch",
    "diversity": "teacher and student homogenised (1: yes)",
    "diversity/agreement": "top-1 agreement (%)",
    "diversity/entropy": "entropy of the predictions (nats)",
    "diversity/classes": "distinct predicted classes",
    "diversity/distance": "relative parameter distance",
    "diversity/cka": "linear CKA of the features",
    "diversity/kl": "KL divergence (nats)",
    "train/noise/fit_wrong": "wrong labels learnt by heart (%)",
    "train/noise/fit_true": "true labels found in spite of wrong ones (%)",
    "share/loss": "share of each term in the loss (%)",
    "share/gradient": "share of each term in the gradient (%)",
}
ALIKE = ("diversity/", "share/")
"""How the columns of metrics.csv begin that have a figure of their own."""


# ---------------------------------------------------------------------- a run


def draw_curves(curves: Mapping[str, Curve], path: Path, title: str, also: Sequence[str] = ()) -> None:
    """Write the curves of a run, less what says how alike its networks are."""
    figure = run_figure({name: curve for name, curve in curves.items() if not name.startswith(ALIKE)}, title)
    if figure is not None:
        drawing.save(figure, path, also)


@styled
def run_figure(curves: Mapping[str, Curve], title: str = "") -> Figure | None:
    """Draw columns of metrics.csv over the epochs, a panel for those that begin alike; None without any."""
    found: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        head, _, last = name.rpartition("/")
        if name != "train/loss_per_peer" and not name.endswith("_best"):
            found.setdefault(name if name in ("val/acc", "val/nll") else head or name, {})[last] = curve
    for head in ("val/acc", "val/nll"):  # a column by itself is the deployed network's
        if head in found and head.rpartition("/")[2] in found[head]:
            found[head]["deployed"] = found[head].pop(head.rpartition("/")[2])
    if not found:
        return None
    figure, places = panels(len(found), min(2, len(found)), 6, 3.2)
    first = [key for key in TITLES if key in found]
    for each, key in zip(places, [*first, *(key for key in found if key not in first)], strict=True):
        _panel(each, key, found[key])
    figure.suptitle(plain(title))
    return figure


def _panel(axes: Axes, key: str, columns: Mapping[str, Curve]) -> None:
    title = TITLES.get(key, plain(key))
    kinds = {label: kind_of(label) for label in columns}
    means = {kind for label, kind in kinds.items() if label in (kind, f"{kind}_mean")}
    shades = {
        kind: COLOURS.get(kind) or colour(number % 10, 10) for number, kind in enumerate(dict.fromkeys(kinds.values()))
    }
    named: set[str] = set()
    for label, curve in columns.items():
        kind, one = kinds[label], label in (kinds[label], f"{kinds[label]}_mean")
        # One of several is thin behind their mean; where there is none, the first names them all.
        name = None if kind in named or (kind in means and not one) else TERM_NAMES.get(label, label if one else kind)
        named |= {kind} if name else set()
        look: dict[str, Any] = {"alpha": 0.3, "linewidth": 1} if kind in means and not one else {}
        look |= {"color": shades[kind], "marker": "." if len(curve.values) == 1 else None}
        axes.plot(
            curve.epochs, _scaled(curve.values, title), label=plain(name.replace("_", " ")) if name else "_", **look
        )
    if key == "train":
        axes.set_yscale("symlog", linthresh=0.01)
    drawing.name(axes, title, "epoch")
    drawing.legend_beside(axes)


def _scaled(values: ArrayLike, title: str) -> NDArray[np.float64]:
    """Give values as the title of their axis counts them, shares in percent where it says so."""
    return np.asarray(values, dtype=float) * (100 if title.endswith("(%)") else 1)


def kind_of(label: str) -> str:
    """Give what a member or pair is one of: student_0 is a student, student_0-teacher_1 a student-teacher."""
    if "-" in label:
        return "-".join(kind_of(part) for part in label.split("-"))
    stem, _, last = label.rpartition("_")
    return stem if stem and (last.isdecimal() or last == "mean") else label


def draw_views(views: NDArray[np.uint8], path: Path) -> None:
    """Put views [B, V, C, H, W] into a PNG, a row a view, a column an image, enlarged if they are small."""
    samples, rows, channels, height, width = views.shape
    scale, gap = max(1, round(64 / max(height, width))), 2
    large = np.repeat(np.repeat(views, scale, axis=3), scale, axis=4)
    if channels != 3:  # of other numbers of channels than one and three the first is shown
        large = large[:, :, :1].repeat(3, axis=2)
    framed = np.pad(large, ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
    sheet = framed.transpose(1, 3, 0, 4, 2).reshape(rows * framed.shape[3], samples * framed.shape[4], 3)
    drawing.save_pixels(sheet[:-gap, :-gap], path)


MOST_NAMED_CLASSES = 25


@styled
def confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Draw how often images of each class (rows) are given each class (columns), as shares of the row."""
    matrix = np.asarray(counts, dtype=float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    few = len(names) <= MOST_NAMED_CLASSES
    size = min(11.0, 3.5 + 0.38 * len(names)) if few else 9.0
    figure = Figure(figsize=(size + 1, size))
    axes = figure.subplots()
    axes.grid(visible=False)
    # The root keeps rare mistakes visible beside a full diagonal.
    drawn = axes.imshow(np.sqrt(shares), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    if few:
        short = [plain(name if len(name) <= 14 else f"{name[:13]}…") for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90)
        axes.set_yticks(range(len(names)), short)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            shade = "black" if shares[row, column] > 0.5 else "white"
            axes.text(column, row, f"{matrix[row, column]:.0f}", color=shade, ha="center", va="center", fontsize=7)
    drawing.name(axes, "", "predicted class", "true class")
    ticks = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, ticks=[tick**0.5 for tick in ticks])
    bar.ax.set_yticklabels([f"{100 * tick:g} %" for tick in ticks])
    bar.set_label("share of the true class")
    return figure


# ---------------------------------------------------------------------- groups of runs

MARKERS = "osD^vPX*"
EVEN_FROM = 8
"""Numbers whose range is this many times their smallest step are drawn at even steps, or the small ones would merge."""
FIGURES = {
    COMPARED: "test accuracy of the deployed network (%)",
    "selected students' ensemble accuracy": "test accuracy of the students' mean probabilities (%)",
    "selected peer disagreement": "disagreement of the student peers (%)",
    "selected NLL": "negative log-likelihood, deployed network (nats)",
}
"""What a sweep draws against what was varied."""
# Where trainings collapse, the likelihood of their last weights is without measure.
FIGURES_COLLAPSED = {
    **{name: title for name, title in FIGURES.items() if name != "selected NLL"},
    "last students' mean accuracy": "mean test accuracy of the student peers, last epoch (%)",
}
COURSES = {
    "val/acc/student_mean": "student peers,\nvalidation accuracy (%)",
    "val/acc/teacher_mean": "teacher peers,\nvalidation accuracy (%)",
    "val/acc/student_ensemble": "mean of the students'\nprobabilities, validation (%)",
    "val/acc/teacher_ensemble": "mean of the teachers'\nprobabilities, validation (%)",
    "diversity/distance/student-teacher": "distance of teacher\nand student",
    "diversity/agreement/student-teacher": "agreement of teacher\nand student (%)",
    "diversity/agreement/student-student": "agreement of the\nstudent peers (%)",
    "train/noise/fit_wrong/student_mean": "student peers, share of\nwrong labels learnt (%)",
    "train/noise/fit_wrong/teacher_mean": "teacher peers, share of\nwrong labels learnt (%)",
}
"""The columns of metrics.csv whose courses groups are compared by."""


@styled
def comparison(groups: Sequence[Group], marked: Group | None, shown: Mapping[str, str] = FIGURES) -> Figure | None:
    """Draw figures of the test set, a row a group: a dot a seed, a bar at the mean; None where nothing has finished.

    Args:
        groups: from top to bottom.
        marked: the group that the others are seen against, a dashed line at its mean.
        shown: by name of the figure, what it is called.
    """
    found = {title: rows for name, title in shown.items() if any(rows := [g.figures(name) for g in groups])}
    if not found:
        return None
    size = 1.7 + 0.42 * len(groups)
    figure, places = panels(len(found), len(found), 3.6 if len(found) > 1 else 8, size, sharey=True)
    for axes, (title, rows) in zip(places, found.items(), strict=True):
        for row, (group, by_seed) in enumerate(zip(groups, rows, strict=True)):
            shade, values = TEACHER if group is marked else STUDENT, _scaled([*by_seed.values()], title)
            axes.plot(values, [row] * len(values), "o", color=shade, alpha=0.45, markersize=6)
            if by_seed:
                mean = values.mean()
                axes.plot(mean, row, "|", color=shade, markersize=20, markeredgewidth=2.5)
                if group is marked:
                    axes.axvline(mean, color=shade, linewidth=0.8, linestyle="--", zorder=0)
        drawing.name(axes, "", title)
    places[0].set_yticks(range(len(groups)), [plain(group.name) for group in groups])
    places[0].set_ylim(len(groups) - 0.5, -0.5)
    figure.suptitle("test set, the epoch that validation chose; a dot a seed, a bar at the mean")
    return figure


@styled
def sweep(groups: Sequence[Group], keys: Sequence[str], shown: Mapping[str, str]) -> Figure | None:
    """Draw figures against what was varied: a dot a seed, a bar at the mean, a line where it is a number.

    Args:
        groups: that have finished.
        keys: what was varied; the first is the horizontal axis, the others make the series.
        shown: by name of the figure, what it is called.
    """
    found = {name: title for name, title in shown.items() if any(group.figures(name) for group in groups)}
    if not found:
        return None
    figure, axes = panels(len(found), min(2, len(found)), 5.2, 3.7)
    places, numeric, note = axis([*dict.fromkeys((group.values or ("",))[0] for group in groups)])
    series = [*dict.fromkeys(group.values[1:] for group in groups)]
    step = min((after - before for before, after in itertools.pairwise(places.values())), default=1.0)
    for each, (name, title) in zip(axes, found.items(), strict=True):
        for number, rest in enumerate(series):
            look = {"color": colour(number, len(series)), "markersize": 4, "marker": MARKERS[number % len(MARKERS)]}
            means = {}
            for group in (group for group in groups if group.values[1:] == rest):
                # Series lie beside each other rather than on top.
                place = places[(group.values or ("",))[0]] + step * 0.6 * ((number + 0.5) / len(series) - 0.5)
                if by_seed := group.figures(name):
                    values = _scaled([*by_seed.values()], title)
                    each.plot([place] * len(values), values, linestyle="", alpha=0.4, markeredgewidth=0, **look)
                    means[place] = values.mean()
            bars = {**look, "marker": "_", "markersize": 11, "markeredgewidth": 2.5, "linewidth": 1}
            means = dict(sorted(means.items()))
            each.plot([*means], [*means.values()], linestyle="-" if numeric else "", **bars)
        each.set_xticks([*places.values()], [plain(value) for value in places])
        if max(map(len, places)) * len(places) > 45:
            each.tick_params(axis="x", rotation=20)
        each.margins(x=0.12)
        drawing.name(each, title, plain((keys[0] if keys else "") + note))
    if len(series) > 1:
        named = [", ".join(f"{k}={v}" for k, v in zip(keys[1:], rest, strict=True)) for rest in series]
        drawing.legend_below(figure, _handles(map(plain, named), MARKERS), 1 if len(named[0]) > 45 else 2)
    return figure


def _handles(names: Sequence[str] | map[str], markers: str = "", *, ordered: bool = False) -> list[Line2D]:
    listed = [*names]
    marks = itertools.cycle(markers or [""])
    shades = [colour(number, len(listed), ordered=ordered) for number in range(len(listed))]
    return [Line2D([], [], color=c, marker=next(marks), label=each) for c, each in zip(shades, listed, strict=True)]


def axis(values: Sequence[str]) -> tuple[Mapping[str, float], bool, str]:
    """Place values on an axis: numbers by their size, at even steps where these differ much, words as they come.

    Returns the places from left to right, whether a line between them means something, and what the label must add.
    """
    try:
        ordered = sorted(values, key=float)
    except ValueError:
        return {value: float(place) for place, value in enumerate(values)}, False, ""
    places = [float(value) for value in ordered]
    step = min((after - before for before, after in itertools.pairwise(places)), default=1.0)
    if len(ordered) < 3 or places[-1] - places[0] < EVEN_FROM * step:
        return dict(zip(ordered, places, strict=True)), True, ""
    return {value: float(place) for place, value in enumerate(ordered)}, True, " (even steps)"


@styled
def courses(groups: Sequence[Group], keys: Sequence[str]) -> Figure | None:
    """Draw the courses of groups over the epochs, the mean of their seeds in a band from the lowest to the highest.

    Of two keys the second makes columns of panels; of more, all together make the colours. The legend says it.
    """
    drawn = {
        title: {group.values: course for group in groups if (course := group.curve(name)) is not None}
        for name, title in COURSES.items()
    }
    drawn = {title: found for title, found in drawn.items() if found}
    if not drawn:
        return None
    by = slice(1, 2) if len(keys) == 2 else slice(0, 0)
    lines, columns = ([*dict.fromkeys(group.values[role] for group in groups)] for role in (_others(by), by))
    ordered = axis([", ".join(values) for values in lines])[1]
    cells = [*itertools.product(drawn.items(), columns)]
    beside = len(columns) if by.stop else min(2, len(cells))  # without columns of their own, panels lie in two
    size = (max(6.5 / beside, 3.6), 2.1 if by.stop else 2.6)
    figure, places = panels(len(cells), beside, *size, sharex=True, sharey="row" if by.stop else False)
    for number, (each, ((title, found), column)) in enumerate(zip(places, cells, strict=True)):
        for values, (epochs, runs) in found.items():
            if values[by] == column:
                shade = colour(lines.index(values[_others(by)]), len(lines), ordered=ordered)
                drawing.band(each, epochs, _scaled(runs, title), color=shade)
        if column == columns[0]:
            each.set_ylabel(title)
        if number < beside:
            each.set_title(plain("".join(f"{keys[1]}={value}" for value in column)))
        if number >= len(cells) - beside:
            each.set_xlabel("epoch")
            each.tick_params(labelbottom=True)
    if keys:
        handles = _handles([plain(", ".join(values)) for values in lines], ordered=ordered)
        most = max(len(runs) for found in drawn.values() for _, runs in found.values())
        seeds = f": mean of {most} seeds, from the lowest to the highest" if most > 1 else ""
        drawing.legend_below(figure, handles, 4, title=plain(", ".join(keys[_others(by)]) + seeds))
    return figure


def _others(by: slice) -> slice:
    return slice(0, 1) if by.stop else slice(0, None)
