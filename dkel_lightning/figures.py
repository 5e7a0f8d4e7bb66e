"""Figures of a run, drawn from its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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


def draw_curves(rows: Rows, path: Path, title: str) -> None:
    """Draw accuracies, likelihoods, loss terms and weights over the epochs into a PNG."""
    epochs = {step: row["epoch"] + 1 for step, row in rows.items() if "epoch" in row}
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _networks(axes[0][0], rows, epochs, "acc", "validation accuracy")
    _networks(axes[0][1], rows, epochs, "nll", "validation negative log-likelihood")
    _terms(axes[1][0], rows, epochs)
    _weights(axes[1][1], rows, epochs)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


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
    FigureCanvasAgg(figure)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
