"""Figures of task=convergence, drawn from a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dkel_lightning.app.figures import save
from dkel_lightning.studies.convergence import Curves
from dkel_lightning.studies.convergence_study import Collapse, OverFit, Panel, Risks, Study, SweepPoint

BANDS = ("none", "dkel")
"""Schemes whose runs are drawn as bands: more would hide each other."""


def draw(study: Study, folder: Path) -> list[Path]:
    """Draw every figure into PNG files of a folder; returns their paths."""
    figures = {
        "risk": _risk(study.risks),
        "homogenisation": _homogenisation(study.panel),
        "over_fitting": _over_fitting(study.over_fit, study.risks),
        "collapse": _collapse(study.collapse),
        "sweeps": _sweeps(study.sweeps, study.risks),
    }
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png", dpi=100)
    return [folder / f"{name}.png" for name in figures]


def _colour(position: int) -> tuple[float, float, float, float]:
    red, green, blue, alpha = colormaps["tab10"](position % 10)
    return red, green, blue, alpha


def _finish(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.grid(alpha=0.3)


# ---------------------------------------------------------------------- noisy quadratic model


def _risk(risks: Risks) -> Figure:
    figure = Figure(figsize=(13, 8.4), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    epochs = np.arange(risks.problem.epochs + 1)
    dots = np.unique(np.geomspace(1, risks.problem.epochs, 12).astype(int))
    for position, (role, scheme) in enumerate(risks.schemes.items()):
        colour, curves, runs = _colour(position), risks.curves[role], risks.simulated[role]
        weights = [scheme.weight(epoch) for epoch in epochs[:-1]]
        lines: Sequence[tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray | None]] = [
            (curves.student_risk, runs.mean.student_risk),
            (curves.teacher_risk, runs.mean.teacher_risk),
            ([np.nan, *weights], None),
            (curves.diversity, runs.mean.diversity),
            (curves.distance, runs.mean.distance),
            (curves.relative_distance, runs.mean.relative_distance),
        ]
        for panel, (values, means) in zip(axes, lines, strict=True):
            panel.plot(epochs[1:], values[1:], color=colour, linewidth=1.5, label=scheme.label)
            if means is not None:
                panel.plot(dots, np.asarray(means)[dots], "o", color=colour, markersize=3)
        if role in BANDS:
            axes[0].fill_between(epochs[1:], runs.low[1:], runs.high[1:], color=colour, alpha=0.13, linewidth=0)
    titles = [
        "student risk; bands: 95 % of the runs",
        "teacher risk",
        "W(e), total weight of the teachers (equal ones overlap)",
    ]
    titles += ["peer diversity", "root mean square |teacher - student|", "the same / |teacher - optimum|"]
    for position, (panel, title) in enumerate(zip(axes, titles, strict=True)):
        panel.set_xscale("log")
        if position != 2:
            panel.set_yscale("log")
        for milestone in risks.problem.milestones:
            if milestone < risks.problem.epochs:
                panel.axvline(milestone, color="grey", linewidth=0.8, linestyle=":")
        _finish(panel, title, "epochs done")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(
        f"Noisy quadratic model, {risks.problem.peers} peers: lines exact, dots means of "
        f"{next(iter(risks.simulated.values())).risk.shape[1]:,} runs, dotted: learning rate falls"
    )
    return figure


def _homogenisation(panel: Panel) -> Figure:
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for (weights, start), curves in panel.curves.items():
        colour = _colour(0 if start == "copy" else 3)
        style = "-" if weights == "constant" else "--"
        label = f"{weights if weights == 'constant' else 'decaying'} weight, " + (
            "copied teacher" if start == "copy" else "own draw, kept"
        )
        shown = (curves.relative_distance, curves.relative_spread, np.sqrt(curves.square_teacher))
        for each, values in zip(axes, shown, strict=True):
            each.plot(panel.steps, values, style, color=colour, label=label)
    axes[0].axhline(panel.floor, color="grey", linewidth=0.9, linestyle=":")
    axes[0].text(panel.steps[-1] ** 0.2, panel.floor, "h / (h + W)", va="top", color="dimgrey", fontsize=9)
    for each, title in zip(
        axes,
        ("|teacher - student| / |teacher - optimum|", "teacher diversity / |teacher - optimum|", "|teacher - optimum|"),
        strict=True,
    ):
        each.set_xscale("log")
        each.set_ylim(bottom=0)
        _finish(each, title, "step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle("Homogenisation without noise, one direction (root mean squares)")
    return figure


def _over_fitting(over_fit: OverFit, risks: Risks) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    kinds: Sequence[tuple[str, Mapping[str, Curves]]] = [
        ("teacher: moving average of the student", over_fit.averaged),
        ("teacher: trained on the labels itself", over_fit.trained),
    ]
    for panel, (title, found) in zip(axes, kinds, strict=True):
        for position, (name, curves) in enumerate(found.items()):
            epochs = np.arange(len(curves.student_risk))
            colour = _colour(position)
            label = over_fit.labels[name]
            panel.plot(epochs[1:], curves.student_risk[1:], color=colour, label=label)
            if name in ("none", "constant"):
                panel.plot(epochs[1:], curves.teacher_risk[1:], color=colour, linestyle=":", linewidth=1.2)
        panel.set_xscale("log")
        panel.set_yscale("log")
        _finish(panel, title, "epochs done")
        for milestone in risks.problem.milestones:
            if milestone < risks.problem.epochs:
                panel.axvline(milestone, color="grey", linewidth=0.8, linestyle=":")
    axes[0].set_ylabel("true risk: students (lines), teachers (dotted)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    figure.suptitle("Training optimum away from the true one, by the course of the teacher's weight")
    return figure


# ---------------------------------------------------------------------- collapse


def _collapse(collapse: Collapse) -> Figure:
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    axes = figure.subplots(1, 3)
    weights = [*dict.fromkeys(weight for weight, _ in collapse.outcomes)]
    starts = [*dict.fromkeys(start for _, start in collapse.outcomes)]
    width = 0.8 / len(starts)
    for position, start in enumerate(starts):
        found = [collapse.outcomes[weight, start] for weight in weights]
        places = np.arange(len(weights)) + (position - (len(starts) - 1) / 2) * width
        shares = np.array([outcome.share for outcome in found])
        ends = np.array([[outcome.low for outcome in found], [outcome.high for outcome in found]])
        colour = _colour(position)
        axes[0].bar(places, shares, width, color=colour, label=f"teacher: {start}")
        axes[0].errorbar(places, shares, abs(ends - shares), fmt="none", ecolor="black", elinewidth=1, capsize=2)
        axes[1].bar(places, [outcome.median_exit for outcome in found], width, color=colour)
        axes[2].bar(places, [outcome.homogenised for outcome in found], width, color=colour)
    titles = ("stuck on the plateau to the end (Wilson 95 %)", "median step at which the others left")
    for panel, title in zip(axes, (*titles, "homogenised share of the time on the plateau"), strict=True):
        panel.set_xticks(range(len(weights)), weights)
        _finish(panel, title, "teacher weight W")
        panel.grid(visible=False, axis="x")
        panel.set_axisbelow(True)
    runs = next(iter(collapse.outcomes.values())).runs
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(starts), fontsize=9)
    figure.suptitle(
        f"Leaving a saddle between two mirror optima, {runs:,} runs a bar, {collapse.landscape.steps} steps"
    )
    return figure


def _sweeps(points: Sequence[SweepPoint], risks: Risks) -> Figure:
    names = [*dict.fromkeys(point.sweep for point in points)]
    figure = Figure(figsize=(15, 7.2), layout="constrained")
    axes = figure.subplots(2, len(names), sharey="row", squeeze=False)
    early, late = risks.epochs[0], risks.epochs[-1]
    for column, name in enumerate(names):
        chosen = [point for point in points if point.sweep == name]
        places = range(len(chosen))
        upper, lower = axes[0][column], axes[1][column]
        upper.plot(places, [p.curves.teacher_risk[early] for p in chosen], "^-", label=f"teacher, epoch {early}")
        for epoch, mark in zip((early, *risks.epochs[2:3], late), ("o-", "D-", "s-"), strict=False):
            upper.plot(places, [p.curves.student_risk[epoch] for p in chosen], mark, label=f"student, epoch {epoch}")
        upper.set_yscale("log")
        shares = np.array([point.outcome.share for point in chosen])
        ends = np.array([[point.outcome.low for point in chosen], [point.outcome.high for point in chosen]])
        lower.errorbar(places, shares, abs(ends - shares), fmt="o-", color=_colour(3), capsize=2)
        long = max(len(point.value) for point in chosen) > 6
        for panel in (upper, lower):
            panel.set_xticks(places, [point.value for point in chosen], rotation=90 if long else 0, fontsize=9)
            panel.grid(alpha=0.3)
        upper.tick_params(labelbottom=False)
        lower.set_xlabel(name)
    axes[0][0].set_ylabel("risk (exact)")
    axes[1][0].set_ylabel("stuck runs (Wilson 95 %)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(
        "One thing varied at a time: quadratic model from the scheme of dkel, saddle from a constant weight"
    )
    return figure
