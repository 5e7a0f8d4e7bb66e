"""Figures of task=convergence."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from dkel_lightning.studies.convergence_study import HOMOGENISATION, Study
from dkel_lightning.studies.output import COLOURS, grid, styled


@styled
def draw(study: Study) -> dict[str, Figure]:
    """Draw every figure, by name."""
    return {
        "risk": _risk(study),
        "homogenisation": _homogenisation(study),
        "over_fitting": _over_fitting(study),
        "collapse": _collapse(study),
    }


def _risk(study: Study) -> Figure:
    figure, rows = grid(2, 3, 4.4, 4.2)
    places = [axes for row in rows for axes in row]
    epochs = np.arange(1, study.problem.epochs + 1)
    dots = np.unique(np.geomspace(1, study.problem.epochs, 12).astype(int))
    names = ("student_risk", "teacher_risk", "diversity", "distance", "relative_distance")
    for colour, (role, scheme) in zip(COLOURS, study.schemes.items(), strict=False):
        for axes, name in zip(places, names, strict=False):
            axes.plot(epochs, getattr(study.curves[role], name)[1:], color=colour, label=scheme.label)
            axes.plot(dots, getattr(study.simulations[role].mean, name)[dots], "o", markersize=3, color=colour)
        if role in ("none", "dkel"):  # more bands would hide each other
            places[0].fill_between(epochs, *study.simulations[role].band[:, 1:], alpha=0.13, color=colour)
        places[5].plot(epochs, [scheme.weight(epoch - 1) for epoch in epochs], color=colour)
    titles = ["student risk; bands: 95 % of the runs", "teacher risk", "peer diversity"]
    titles += ["root mean square |teacher - student|", "the same / |teacher - optimum|", "W, total teacher weight"]
    for axes, title in zip(places, titles, strict=True):
        axes.set(xscale="log", yscale="linear" if axes is places[5] else "log", title=title, xlabel="epochs done")
        for milestone in study.problem.milestones:
            axes.axvline(milestone, color="grey", linewidth=0.8, linestyle=":")
    runs = next(iter(study.simulations.values())).risk.shape[1]
    figure.suptitle(f"Noisy quadratic model: lines exact, dots means of {runs:,} runs; dotted: learning rate falls")
    return figure


def _homogenisation(study: Study) -> Figure:
    figure, (row,) = grid(1, 3, 4, 4.6)
    reach = "|teacher - optimum|"
    for (weights, start), curves in study.homogenisation.items():
        colour, style = COLOURS[start == "own"], "-" if weights == "constant" else "--"
        values = (curves.relative_distance, curves.relative_spread, np.sqrt(curves.square_teacher))
        for axes, line in zip(row, values, strict=True):
            axes.plot(study.steps, line, style, color=colour, label=f"{weights} weight, teacher: {start}")
    h, weight = HOMOGENISATION.curvatures[0], study.schemes["dkel"].scale
    row[0].axhline(h / (h + weight), color="grey", linestyle=":")
    for axes, title in zip(row, (f"|teacher - student| / {reach}", f"teacher diversity / {reach}", reach), strict=True):
        axes.set(xscale="log", title=title, xlabel="step")
    figure.suptitle("Homogenisation without noise, one direction (root mean squares); dotted: h / (h + W)")
    return figure


def _over_fitting(study: Study) -> Figure:
    figure, (row,) = grid(1, 2, 5.5, 5, sharey=True)
    labels = [label for teacher, label in study.over_fitting if teacher == "averaged"]
    for (teacher, label), curves in study.over_fitting.items():
        axes, colour = row[teacher == "trained"], COLOURS[labels.index(label)]
        axes.plot(curves.student_risk, color=colour, label=label)
        axes.plot(curves.teacher_risk, color=colour, linestyle=":", linewidth=1)
        title = "moving average of the student" if teacher == "averaged" else "trained on the labels itself"
        axes.set(xscale="log", yscale="log", xlim=(1, None), title=f"teacher: {title}", xlabel="epochs done")
    row[0].set_ylabel("true risk: students (lines), teachers (dotted)")
    figure.suptitle("Training optimum away from the true one, by the course of the teacher's weight")
    return figure


def _collapse(study: Study) -> Figure:
    figure, (row,) = grid(1, 3, 4.3, 4.6)
    weights, starts = (list(dict.fromkeys(key[place] for key in study.collapse)) for place in (0, 1))
    for number, start in enumerate(starts):
        outcomes = [study.collapse[weight, start] for weight in weights]
        places = np.arange(len(weights)) + 0.2 * (number - 1.5)
        shares = np.array([outcome.share for outcome in outcomes])
        errors = np.abs(np.array([[o.low for o in outcomes], [o.high for o in outcomes]]) - shares)
        heights = np.array([shares, [o.median_exit for o in outcomes], [o.homogenised for o in outcomes]])
        for axes, values in zip(row, heights, strict=True):
            axes.bar(places, values, 0.2, color=COLOURS[number], label=f"teacher: {start}")
        row[0].errorbar(places, shares, errors, fmt="none", ecolor="black", capsize=2)
    titles = ("stuck on the plateau to the end (Wilson 95 %)", "median step at which the others left")
    for axes, title in zip(row, (*titles, "homogenised share of the time on the plateau"), strict=True):
        axes.set_xticks(range(len(weights)), weights)
        axes.set(title=title, xlabel="teacher weight W")
    figure.suptitle(f"Leaving a saddle between two mirror optima, {outcomes[0].runs:,} runs a bar")
    return figure
