"""Figures of a run and of a sweep."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from dkel_lightning.app.records import Curve
from dkel_lightning.runtime.atomic_files import write_bytes
from dkel_lightning.studies.output import grid, styled
from dkel_lightning.studies.seed_statistics import paired

STUDENT, TEACHER = "#1f77b4", "#d62728"
SOLID, LONG, DASHED, MIXED, DOTTED = "-", (0, (9, 2)), (0, (4, 2)), (0, (6, 2, 1, 2)), (0, (1, 1.5))
LINES: Sequence[Any] = (SOLID, DASHED, DOTTED, MIXED)
LOOKS: Mapping[str, tuple[str, Any]] = {
    "student": (STUDENT, SOLID),
    "teacher": (TEACHER, DASHED),
    "ensemble": ("#2ca02c", MIXED),
    "teacher_ensemble": ("#ff7f0e", DOTTED),
    "student_ensemble": ("#17becf", LONG),
    "student-teacher": ("#9467bd", MIXED),
    "student-student": (STUDENT, SOLID),
    "teacher-teacher": (TEACHER, DASHED),
    "deployed": ("#7f7f7f", SOLID),
}
"""Colour and line style. Of coinciding curves, the one with the larger gaps is drawn on top."""
TITLES = {
    "val/acc": "validation accuracy (%)",
    "val/nll": "validation negative log-likelihood (nats)",
    "train": "loss terms, weighted, summed over peers",
    "train/acc": "training accuracy (%)",
    "weights": "weights at the end of the epoch",
    "diversity/agreement": "top-1 agreement (%)",
    "diversity/distance": "relative distance of teacher and student",
    "train/noise/fit_wrong": "wrong labels learnt (%)",
    "train/noise/fit_true": "true labels predicted in spite of wrong ones (%)",
}
HIDDEN = ("student_best", "teacher_best", "loss_per_peer")
SWEPT = {
    "val/acc/student_mean": "student peers, validation accuracy (%)",
    "val/acc/teacher_mean": "teacher peers, validation accuracy (%)",
    "val/acc/student_ensemble": "students' ensemble, validation accuracy (%)",
    "diversity/agreement/student-student": "agreement of the student peers (%)",
    "diversity/distance/student-teacher": "distance of teacher and student",
    "train/noise/fit_wrong/student_mean": "student peers, wrong labels learnt (%)",
}
"""Columns of metrics.csv that are drawn for a sweep, with their titles."""


@styled
def draw_curves(curves: Mapping[str, Curve], path: Path, title: str) -> None:
    """Draw the columns of metrics.csv over the epochs, one panel for each prefix in TITLES."""
    by_panel: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        head, _, last = name.rpartition("/")
        if name in ("val/acc", "val/nll"):
            head, last = name, "deployed"
        if head == "diversity/distance" and last != "student-teacher":
            continue  # far larger, between peers
        if head in TITLES and last not in HIDDEN:
            by_panel.setdefault(head, {})[last] = curve
    if not by_panel:
        return
    figure, places = panels(len(by_panel), min(2, len(by_panel)), 6, 3.2)
    for axes, head in zip(places, (head for head in TITLES if head in by_panel), strict=True):
        _draw_panel(axes, head, by_panel[head])
    figure.suptitle(plain(f"{title}; thin: single peers"))
    save(figure, path)


def _draw_panel(axes: Axes, head: str, columns: Mapping[str, Curve]) -> None:
    kinds = {label: kind_of(label) for label in columns}
    means = {kinds[label] for label in columns if label in (kinds[label], f"{kinds[label]}_mean")}
    order = [*dict.fromkeys(kinds.values())]
    named: set[str] = set()
    for label, curve in columns.items():
        kind, number = kinds[label], order.index(kinds[label])
        peer = kind in means and label not in (kind, f"{kind}_mean")  # thin, behind the mean of its kind
        text = (label if label in (kind, f"{kind}_mean") else kind).replace("_", " ")
        show = not peer and kind not in named
        named |= {kind} if show else set()
        colour, line = LOOKS.get(kind) or (f"C{number % 10}", LINES[number % len(LINES)])
        look: dict[str, Any] = {"zorder": 2 if line == SOLID else 2 + sum(line[1][1::2]) / sum(line[1])}
        if kind == "deployed":
            look = {"alpha": 0.3, "linewidth": 5, "zorder": 1}  # behind the member that it is
        elif peer:
            look |= {"alpha": 0.3, "linewidth": 1}
        axes.plot(
            curve.epochs,
            _scaled(curve.values, TITLES[head]),
            label=plain(text) if show else "_",
            color=colour,
            linestyle=line,
            marker="." if len(curve.values) == 1 else None,
            **look,
        )
    if head == "train":
        axes.set_yscale("symlog", linthresh=0.01)
    axes.set(title=TITLES[head], xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)


def _scaled(values: ArrayLike, title: str) -> NDArray[np.float64]:
    return np.asarray(values, dtype=float) * (100 if title.endswith("(%)") else 1)


def kind_of(label: str) -> str:
    """Return the kind of a member or a pair: student for student_0, student-teacher for student_0-teacher_1."""
    if "-" in label:
        return "-".join(kind_of(part) for part in label.split("-"))
    stem, _, last = label.rpartition("_")
    return stem if stem and (last.isdecimal() or last == "mean") else label


def draw_views(views: NDArray[np.uint8], path: Path) -> None:
    """Draw views [B, V, C, H, W]: one row per view, one column per image, enlarged if they are small."""
    samples, rows, channels, height, width = views.shape
    scale, gap = max(1, round(64 / max(height, width))), 2
    large = np.repeat(np.repeat(views, scale, axis=3), scale, axis=4)
    if channels != 3:  # show the first channel
        large = large[:, :, :1].repeat(3, axis=2)
    framed = np.pad(large, ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap)), constant_values=255)
    sheet = framed.transpose(1, 3, 0, 4, 2).reshape(rows * framed.shape[3], samples * framed.shape[4], 3)
    written = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet[:-gap, :-gap])).save(written, "PNG")
    write_bytes(path, written.getvalue())


@styled
def draw_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix: true classes in rows, predictions in columns, as shares of the row."""
    matrix = np.asarray(counts, dtype=float)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    few = len(names) <= 25
    size = min(11.0, 3.5 + 0.38 * len(names)) if few else 9.0
    figure, (axes,) = panels(1, 1, size + 1, size)
    axes.grid(visible=False)
    # The square root keeps rare mistakes visible.
    image = axes.imshow(np.sqrt(shares), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    if few:
        short = [plain(name if len(name) <= 14 else f"{name[:13]}…") for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90)
        axes.set_yticks(range(len(names)), short)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            shade = "black" if shares[row, column] > 0.5 else "white"
            axes.text(column, row, f"{matrix[row, column]:.0f}", color=shade, ha="center", va="center", fontsize=7)
    axes.set(xlabel="predicted class", ylabel="true class")
    ticks = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[tick**0.5 for tick in ticks])
    bar.ax.set_yticklabels([f"{100 * tick:g} %" for tick in ticks])
    bar.set_label("share of the true class")
    save(figure, path)


@styled
def draw_bars(scores: Mapping[str, Mapping[str, Sequence[float]]], reference: str, path: Path) -> None:
    """Draw test scores: one panel per score, one row per label, one dot per seed, the mean with its 95 % interval.

    Args:
        scores: a value for each seed, by panel title and label; all panels have the same labels.
        reference: label whose mean is marked by a dashed line.
        path: the PNG.
    """
    labels = [*next(iter(scores.values()))]
    figure, places = panels(
        len(scores), len(scores), 3.6 if len(scores) > 1 else 8, 1.7 + 0.42 * len(labels), sharey=True
    )
    for axes, (title, by_label) in zip(places, scores.items(), strict=True):
        for row, label in enumerate(labels):
            values = _scaled(by_label[label], title)
            if not len(values) or not np.isfinite(values).all():
                continue
            shade = TEACHER if label == reference else STUDENT
            mean = paired(values.tolist(), [0.0] * len(values))
            axes.plot(values, [row] * len(values), "o", color=shade, alpha=0.45, markersize=6, markeredgewidth=0)
            axes.plot(mean.mean, row, "|", color=shade, markersize=18, markeredgewidth=2.5)
            if mean.low is not None and mean.high is not None:
                axes.plot([mean.low, mean.high], [row, row], color=shade, linewidth=1.2)
            if label == reference:
                axes.axvline(mean.mean, color=shade, linewidth=0.8, linestyle=LINES[1], zorder=0)
        axes.set_xlabel(title)
    places[0].set_yticks(range(len(labels)), [plain(label) for label in labels])
    places[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.suptitle("test set, selected epoch: one dot per seed, mean with 95 % interval")
    save(figure, path)


@styled
def draw_sweep_curves(curves: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path) -> None:
    """Draw curves of a sweep: one panel per title, one colour and dash per label, seeds thin behind their mean.

    Args:
        curves: one for each seed, by title and label.
        path: the PNG.
    """
    labels = [*dict.fromkeys(label for by_label in curves.values() for label in by_label)]
    beside = min(2, len(curves))
    figure, places = panels(len(curves), beside, 5.2, 3)
    looks = {
        label: {"color": f"C{number % 10}", "linestyle": LINES[(number + number // 10) % len(LINES)]}
        for number, label in enumerate(labels)
    }
    for axes, (title, by_label) in zip(places, curves.items(), strict=True):
        for label, seeds in by_label.items():
            for curve in seeds if len(seeds) > 1 else ():
                axes.plot(curve.epochs, _scaled(curve.values, title), linewidth=0.5, alpha=0.35, **looks[label])
            mean = mean_curve(seeds)
            marker = "." if len(mean.epochs) == 1 else None
            axes.plot(mean.epochs, _scaled(mean.values, title), linewidth=1.8, marker=marker, **looks[label])
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [Line2D([], [], label=plain(label), linewidth=1.8, **look) for label, look in looks.items()]
    most = max(len(seeds) for by_label in curves.values() for seeds in by_label.values())
    note = f"mean of {most} seeds, each seed thin" if most > 1 else None
    figure.legend(handles=handles, loc="outside lower center", ncols=4, title=note)
    save(figure, path)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Average curves over their common epochs."""
    by_epoch = [dict(zip(curve.epochs, curve.values, strict=True)) for curve in curves]
    epochs = sorted(set.intersection(*map(set, by_epoch)))
    return Curve(epochs, [float(np.mean([one[epoch] for one in by_epoch])) for epoch in epochs])


# ---------------------------------------------------------------------- what all figures share


def panels(count: int, beside: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` axes of this size in inches, `beside` to a row."""
    figure, rows = grid(-(-count // beside), beside, width, height, **options)
    axes = [one for row in rows for one in row]
    for one in axes[count:]:
        one.set_visible(False)
    return figure, axes[:count]


def plain(text: str) -> str:
    """Escape dollar signs, which matplotlib reads as math."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    write_bytes(path, encode(figure))


def encode(figure: Figure) -> bytes:
    """Encode a figure as PNG, within the style that it was made with."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()
