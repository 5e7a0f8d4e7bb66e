"""Figures of task=convergence, drawn from a study."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dkel_lightning.app import drawing
from dkel_lightning.app.drawing import colour, grid, panels
from dkel_lightning.studies.collapse import Outcome
from dkel_lightning.studies.convergence_settings import ConvergenceSettings
from dkel_lightning.studies.convergence_study import Collapse, OverFit, Panel, Risks, Study, SweepPoint

BANDS = ("none", "dkel")
"""Schemes whose runs are drawn as bands: more would hide each other."""


@drawing.styled
def draw(study: Study) -> dict[str, Figure]:
    """Draw every figure, by name."""
    return {
        "risk": _risk(study.risks),
        "homogenisation": _homogenisation(study.panel),
        "over_fitting": _over_fitting(study.over_fit, study.risks.problem),
        "collapse": _collapse(study.collapse),
        "sweeps": _sweeps(study.sweeps, study.risks),
    }


def _legend(figure: Figure, columns: int) -> None:
    drawing.legend_below(figure, figure.axes[0].get_legend_handles_labels()[0], columns)


def _milestones(axes: Axes, problem: ConvergenceSettings) -> None:
    for milestone in problem.milestones:
        if milestone < problem.epochs:
            axes.axvline(milestone, color="grey", linewidth=0.8, linestyle=":")


def _errors(outcomes: list[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Give the shares of stuck runs, and how far their Wilson intervals reach."""
    shares = np.array([outcome.share for outcome in outcomes])
    return shares, abs(np.array([[each.low for each in outcomes], [each.high for each in outcomes]]) - shares)


# ---------------------------------------------------------------------- noisy quadratic model


def _risk(risks: Risks) -> Figure:
    figure, places = panels(6, 3, 4.4, 4.2)
    epochs = np.arange(risks.problem.epochs + 1)
    dots = np.unique(np.geomspace(1, risks.problem.epochs, 12).astype(int))
    names = ("student_risk", "teacher_risk", "", "diversity", "distance", "relative_distance")
    for position, (role, scheme) in enumerate(risks.schemes.items()):
        look, curves, runs = {"color": colour(position, 10)}, risks.curves[role], risks.simulated[role]
        weights = [np.nan, *(scheme.weight(epoch) for epoch in epochs[:-1])]
        for each, name in zip(places, names, strict=True):
            values = getattr(curves, name) if name else weights
            each.plot(epochs[1:], values[1:], label=scheme.label, **look)
            if name:
                each.plot(dots, getattr(runs.mean, name)[dots], "o", markersize=3, **look)
        if role in BANDS:
            places[0].fill_between(epochs[1:], runs.low[1:], runs.high[1:], alpha=0.13, linewidth=0, **look)
    titles = ["student risk; bands: 95 % of the runs", "teacher risk", "W(e), total weight (equal ones overlap)"]
    titles += ["peer diversity", "root mean square |teacher - student|", "the same / |teacher - optimum|"]
    for each, name, title in zip(places, names, titles, strict=True):
        each.set(xscale="log", yscale="log" if name else "linear")
        _milestones(each, risks.problem)
        drawing.name(each, title, "epochs done")
    _legend(figure, 3)
    runs = next(iter(risks.simulated.values())).risk.shape[1]
    said = f"lines exact, dots means of {runs:,} runs, dotted: learning rate falls"
    figure.suptitle(f"Noisy quadratic model, {risks.problem.peers} peers: {said}")
    return figure


def _homogenisation(panel: Panel) -> Figure:
    figure, (axes,) = grid(1, 3, 4, 4.6)
    for (weights, start), curves in panel.curves.items():
        shade, style = colour(0 if start == "copy" else 3, 10), "-" if weights == "constant" else "--"
        label = f"{weights if weights == 'constant' else 'decaying'} weight, "
        label += "copied teacher" if start == "copy" else "own draw, kept"
        shown = (curves.relative_distance, curves.relative_spread, np.sqrt(curves.square_teacher))
        for each, values in zip(axes, shown, strict=True):
            each.plot(panel.steps, values, style, color=shade, label=label)
    axes[0].axhline(panel.floor, color="grey", linewidth=0.9, linestyle=":")
    axes[0].text(panel.steps[-1] ** 0.2, panel.floor, "h / (h + W)", va="top", color="dimgrey", fontsize=9)
    reach = "|teacher - optimum|"
    for each, title in zip(
        axes, (f"|teacher - student| / {reach}", f"teacher diversity / {reach}", reach), strict=True
    ):
        each.set_xscale("log")
        each.set_ylim(bottom=0)
        drawing.name(each, title, "step")
    _legend(figure, 4)
    figure.suptitle("Homogenisation without noise, one direction (root mean squares)")
    return figure


def _over_fitting(over_fit: OverFit, problem: ConvergenceSettings) -> Figure:
    figure, (axes,) = grid(1, 2, 5.5, 5, sharey=True)
    for each, title, found in (
        (axes[0], "teacher: moving average of the student", over_fit.averaged),
        (axes[1], "teacher: trained on the labels itself", over_fit.trained),
    ):
        for position, (name, curves) in enumerate(found.items()):
            epochs, shade = np.arange(1, len(curves.student_risk)), colour(position, 10)
            each.plot(epochs, curves.student_risk[1:], color=shade, label=over_fit.labels[name])
            if name in ("none", "constant"):
                each.plot(epochs, curves.teacher_risk[1:], color=shade, linestyle=":", linewidth=1.2)
        each.set(xscale="log", yscale="log")
        drawing.name(each, title, "epochs done")
        _milestones(each, problem)
    axes[0].set_ylabel("true risk: students (lines), teachers (dotted)")
    _legend(figure, 5)
    figure.suptitle("Training optimum away from the true one, by the course of the teacher's weight")
    return figure


# ---------------------------------------------------------------------- collapse


def _collapse(collapse: Collapse) -> Figure:
    figure, (axes,) = grid(1, 3, 4.3, 4.6)
    weights = [*dict.fromkeys(weight for weight, _ in collapse.outcomes)]
    starts = [*dict.fromkeys(start for _, start in collapse.outcomes)]
    width = 0.8 / len(starts)
    for position, start in enumerate(starts):
        found = [collapse.outcomes[weight, start] for weight in weights]
        places = np.arange(len(weights)) + (position - (len(starts) - 1) / 2) * width
        shares, errors = _errors(found)
        heights = np.array([shares, [each.median_exit for each in found], [each.homogenised for each in found]])
        for each, values in zip(axes, heights, strict=True):
            each.bar(places, values, width, color=colour(position, 10), label=f"teacher: {start}")
        axes[0].errorbar(places, shares, errors, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    titles = ("stuck on the plateau to the end (Wilson 95 %)", "median step at which the others left")
    for each, title in zip(axes, (*titles, "homogenised share of the time on the plateau"), strict=True):
        each.set_xticks(range(len(weights)), weights)
        drawing.name(each, title, "teacher weight W")
    _legend(figure, len(starts))
    runs = next(iter(collapse.outcomes.values())).runs
    said = f"{runs:,} runs a bar, {collapse.landscape.steps} steps"
    figure.suptitle(f"Leaving a saddle between two mirror optima, {said}")
    return figure


def _sweeps(points: tuple[SweepPoint, ...], risks: Risks) -> Figure:
    names = [*dict.fromkeys(point.sweep for point in points)]
    figure, (uppers, lowers) = grid(2, len(names), 15 / len(names), 3.6, sharey="row")
    early, late = risks.epochs[0], risks.epochs[-1]
    for upper, lower, name in zip(uppers, lowers, names, strict=True):
        chosen = [point for point in points if point.sweep == name]
        places = range(len(chosen))
        upper.plot(places, [p.curves.teacher_risk[early] for p in chosen], "^-", label=f"teacher, epoch {early}")
        for epoch, mark in zip((early, *risks.epochs[2:3], late), ("o-", "D-", "s-"), strict=False):
            upper.plot(places, [p.curves.student_risk[epoch] for p in chosen], mark, label=f"student, epoch {epoch}")
        upper.set_yscale("log")
        shares, errors = _errors([point.outcome for point in chosen])
        lower.errorbar(places, shares, errors, fmt="o-", color=colour(3, 10), capsize=2)
        long = max(len(point.value) for point in chosen) > 6
        for each in (upper, lower):
            each.set_xticks(places, [point.value for point in chosen], rotation=90 if long else 0)
        upper.tick_params(labelbottom=False)
        lower.set_xlabel(name)
    uppers[0].set_ylabel("risk (exact)")
    lowers[0].set_ylabel("stuck runs (Wilson 95 %)")
    _legend(figure, 4)
    figure.suptitle(
        "One thing varied at a time: quadratic model from the scheme of dkel, saddle from a constant weight"
    )
    return figure
