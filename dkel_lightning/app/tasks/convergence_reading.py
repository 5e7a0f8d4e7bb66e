"""The reading of task=convergence: sentences that are chosen and filled by the numbers of a study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dkel_lightning.studies.collapse import Outcome, escape_factor, independent_amplitude
from dkel_lightning.studies.convergence import EXPECTED, Curves, settled
from dkel_lightning.studies.convergence_study import Collapse, OverFit, Panel, Risks, Settings, Study, SweepPoint

ALIKE = 0.05
"""Risks that differ by less than this share are called alike."""


def write(study: Study, settings: Settings) -> str:
    """Write the page: what was computed, the tables, and what they show."""
    lines = ["# Reading", ""]
    lines += [
        "Written from the numbers beside it; risks are times 1000. Nothing here is the paper's set-up or number.",
        "",
    ]
    lines += [*_risks(study.risks), ""]
    lines += [*_panel(study.panel), ""]
    lines += [*_over_fit(study.over_fit), ""]
    lines += [*_collapse(study.collapse, settings), ""]
    lines += [*_sweeps(study.sweeps, study.risks, settings)]
    return "\n".join(lines) + "\n"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a Markdown table; the first column is text, the others numbers."""
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return [f"| {' | '.join(row)} |" for row in (heading, rule, *rows)]


def thousandths(value: float) -> str:
    """Show a risk times 1000 with about three figures."""
    return f"{1000 * value:.{2 if value < 0.001 else 1 if value < 0.1 else 0}f}"


# ---------------------------------------------------------------------- risks


def _risks(risks: Risks) -> Iterator[str]:
    runs = next(iter(risks.simulated.values())).risk.shape[1]
    yield "## Noisy quadratic model"
    yield ""
    yield from table(*risk_table(risks))
    yield ""
    yield (
        f"Exact moments; means over the peers. Settled: first epoch from which the student's risk stays within 1.1 "
        f"times that of epoch {risks.problem.first_phase}; single runs: median (95 % of {runs:,} runs) of the first "
        "epoch at which the run's own risk is that low."
    )
    yield ""
    yield f"* {_agreement(risks, runs)}"
    yield f"* {_early(risks)}"
    yield f"* {_late(risks)}"
    yield f"* {_strength(risks)}"


def risk_table(risks: Risks) -> tuple[list[str], list[list[str]]]:
    """Give heading and rows of the table of risks."""
    epochs, early = risks.epochs, risks.epochs[:3]
    last = risks.problem.first_phase
    heading = ["scheme", *(f"student {e}" for e in epochs), f"student {risks.problem.epochs}"]
    heading += [*(f"teacher {e}" for e in early), f"diversity {last}", "settled", "single runs"]
    rows = []
    for role, scheme in risks.schemes.items():
        curves = risks.curves[role]
        row = [scheme.label, *(thousandths(curves.student_risk[e]) for e in [*epochs, risks.problem.epochs])]
        row += [thousandths(curves.teacher_risk[e]) for e in early]
        row += [thousandths(curves.diversity[last]), str(settled(curves.student_risk[: last + 1]))]
        rows.append([*row, _times(risks, role)])
    return heading, rows


def times(risks: Risks, role: str) -> tuple[float, float, float]:
    """Give 2.5 % quantile, median and 97.5 % quantile of the times of a scheme's runs; inf for never."""
    threshold = 1.1 * risks.curves[role].student_risk[risks.problem.first_phase]
    found = np.sort(risks.simulated[role].first_below(float(threshold)))
    low, middle, high = (found[math.floor(share * (len(found) - 1))] for share in (0.025, 0.5, 0.975))
    return float(low), float(middle), float(high)


def _times(risks: Risks, role: str) -> str:
    low, middle, high = times(risks, role)
    return f"{middle:g} ({low:g} to {high:g})"


def _agreement(risks: Risks, runs: int) -> str:
    worst = 0.0
    for role, curves in risks.curves.items():
        simulated = risks.simulated[role]
        for name in EXPECTED:
            error = getattr(simulated.error, name)[risks.epochs]
            gap = np.abs(getattr(simulated.mean, name) - getattr(curves, name))[risks.epochs]
            worst = max(worst, float(np.max(gap / error)))
    verdict = (
        "as sampling leaves them" if worst < 4 else "further than it should leave them, so repeat with another seed"
    )
    return (
        f"Simulation and exact moments lie at most {worst:.1f} standard errors apart at the epochs of the table, over "
        f"all schemes, quantities and {runs:,} runs: {verdict}."
    )


def _early(risks: Risks) -> str:
    first = risks.epochs[0]
    roles = ("dkel", "copy", "mean_teacher", "ahead")
    teachers = {role: float(risks.curves[role].teacher_risk[first]) for role in roles}
    order = sorted(teachers, key=lambda role: teachers[role])
    listed = ", ".join(f"{thousandths(teachers[role])} ({risks.schemes[role].label})" for role in order)
    said = f"After epoch {first} the teacher's risk is, from best to worst: {listed}."
    if order[-1] == "dkel":
        said += " An own draw that is kept without a real initialisation gives the worst early teacher of the four"
        said += ", against the abstract's independent teacher as the strong early one"
    else:
        said += f" The worst early teacher of the four is {risks.schemes[order[-1]].label}"
    if order[0] == "ahead":
        return said + "; an initialisation that puts it ahead gives the best."
    return said + f"; the best is {risks.schemes[order[0]].label}, not the one that is initialised longest."


def _late(risks: Risks) -> str:
    roles = ("dkel", "copy", "mean_teacher", "ahead")
    stacked = np.stack([risks.curves[role].student_risk for role in roles])
    spread = stacked.max(0) / stacked.min(0) - 1
    phase, end = risks.problem.first_phase, risks.problem.epochs
    over = np.flatnonzero(spread[: phase + 1] > ALIKE)
    last = int(over[-1]) if over.size else 0
    if last >= phase:
        said = f"The students of these four starts differ by {spread[phase]:.0%} still at epoch {phase}"
    else:
        said = (
            f"The students of these four starts lie within {ALIKE:.0%} of each other from epoch {last + 1} to {phase}"
        )
    if end == phase:
        return f"{said}, where the run ends."
    values = ", ".join(thousandths(float(values[end])) for values in stacked)
    if last < phase and spread[end] > ALIKE:
        return (
            f"{said}, where the noise hides what is left of their starts; after the learning rate has fallen they are "
            f"{spread[end]:.0%} apart at epoch {end} ({values})."
        )
    return f"{said}, and by {spread[end]:.1%} at epoch {end} ({values})."


def _strength(risks: Risks) -> str:
    last = risks.problem.first_phase
    none, dkel, pcl = (risks.curves[role] for role in ("none", "dkel", "pcl"))
    lower = none.student_risk[last] > dkel.student_risk[last]
    narrower = none.diversity[last] > dkel.diversity[last]
    said = (
        f"At epoch {last} dkel's risk is {thousandths(dkel.student_risk[last])} against "
        f"{thousandths(none.student_risk[last])} without distillation, its diversity "
        f"{thousandths(dkel.diversity[last])} against {thousandths(none.diversity[last])}: "
    )
    if lower and narrower:
        said += "the teachers' weight buys risk with diversity."
    elif lower:
        said += "the risk falls, and diversity with it does not."
    else:
        said += "distillation does not lower the risk here."
    gap = abs(dkel.student_risk[last] / pcl.student_risk[last] - 1)
    if gap < ALIKE:
        return said + f" pcl, which has no decaying ensemble, ends {gap:.1%} from dkel."
    return said + f" pcl, which has no decaying ensemble, ends at {thousandths(pcl.student_risk[last])}."


# ---------------------------------------------------------------------- homogenisation


def _panel(panel: Panel) -> Iterator[str]:
    yield "## Homogenisation without noise"
    yield ""
    shown = [panel.steps[position] for position in panel.shown]
    rows = []
    for (weights, start), curves in panel.curves.items():
        cells = [
            f"{curves.relative_distance[p]:.2f} / {curves.relative_spread[p]:.2f} / "
            f"{math.sqrt(curves.square_teacher[p]):.3g}"
            for p in panel.shown
        ]
        rows.append([f"{'constant' if weights == 'constant' else 'decaying'} weight, {start}", *cells])
    yield from table(["weight, teacher", *(f"step {step}" for step in shown)], rows)
    yield ""
    yield (
        "Distance to the own student over the teacher's distance to the optimum / diversity of the teachers over it / "
        "the distance to the optimum itself."
    )
    yield ""
    yield f"* {_postponed(panel)}"
    yield f"* {_price(panel)}"
    yield f"* {_undone(panel)}"


def _reached(panel: Panel, key: tuple[str, str]) -> int | None:
    """Give the first step from which on the relative distance stays within 5 % of its floor."""
    away = np.flatnonzero(np.abs(panel.curves[key].relative_distance / panel.floor - 1) > ALIKE)
    if away.size and away[-1] + 1 >= len(panel.steps):
        return None
    return panel.steps[int(away[-1]) + 1] if away.size else panel.steps[0]


def _postponed(panel: Panel) -> str:
    copy, own = (_reached(panel, ("constant", start)) for start in ("copy", "own"))
    floor = f"the floor h / (h + W) = {panel.floor:.3f}"
    if copy is None:
        return f"Under constant weight not even the copied teacher comes to {floor} within {panel.steps[-1]} steps."
    left = math.sqrt(panel.curves["constant", "copy"].square_teacher[panel.steps.index(copy)])
    said = (
        f"Under constant weight a copied teacher is at {floor} from about step {copy} on, {left:.2f} from the optimum"
    )
    if own is None:
        return said + f"; an own draw does not come there within {panel.steps[-1]} steps."
    if own > copy:
        return (
            said + f"; an own draw comes there about step {own}: it postpones homogenisation and does not prevent it."
        )
    return said + f"; an own draw comes there no later, at step {own}."


def _price(panel: Panel) -> str:
    copy, own = (np.sqrt(panel.curves["constant", start].square_teacher) for start in ("copy", "own"))
    further = [panel.steps[p] for p in panel.shown if own[p] > copy[p]]
    if len(further) == len(panel.shown):
        middle = panel.shown[len(panel.shown) // 2]
        return (
            "The own draw is further from the optimum at every step of the table, for instance "
            f"{own[middle]:.2f} against {copy[middle]:.2f} at step {panel.steps[middle]}."
        )
    if not further:
        return "The own draw is nowhere further from the optimum than the copy."
    return (
        f"The own draw is further from the optimum at steps {', '.join(map(str, further))} of the table, else nearer."
    )


def _undone(panel: Panel) -> str:
    last = panel.shown[-1]
    found = {start: panel.curves["decay", start] for start in ("copy", "own")}
    distances = " and ".join(f"{curves.relative_distance[last]:.2f} ({start})" for start, curves in found.items())
    left = min(math.sqrt(curves.square_teacher[last]) for curves in found.values())
    constant = min(math.sqrt(panel.curves["constant", start].square_teacher[last]) for start in found)
    undone = all(curves.relative_distance[last] > 2 * panel.floor for curves in found.values())
    verdict = "a decaying weight undoes homogenisation" if undone else "a decaying weight does not undo homogenisation"
    return (
        f"With the decaying weight the relative distance is {distances} at step {panel.steps[last]}: {verdict}, "
        f"{left:.2g} from the optimum at best, against {constant:.2g} under constant weight."
    )


# ---------------------------------------------------------------------- over-fitting


def _over_fit(over_fit: OverFit) -> Iterator[str]:
    yield "## Late over-fitting"
    yield ""
    yield from table(*over_fit_table(over_fit))
    yield ""
    yield f"* {_gain(over_fit)}"
    yield f"* {_lag(over_fit)}"
    yield f"* {_own_teacher(over_fit)}"


def over_fit_table(over_fit: OverFit) -> tuple[list[str], list[list[str]]]:
    """Give heading and rows: true risks at the end, with both kinds of teacher."""
    heading = ["teacher's weight", "student", "averaged teacher", "student of a trained teacher", "trained teacher"]
    rows = []
    for name, label in over_fit.labels.items():
        ends = [over_fit.averaged[name], over_fit.trained[name]]
        rows.append([label, *(thousandths(r[-1]) for c in ends for r in (c.student_risk, c.teacher_risk))])
    return heading, rows


def _end(curves: Mapping[str, Curves], name: str) -> float:
    return float(curves[name].student_risk[-1])


def _gain(over_fit: OverFit) -> str:
    none, decay, constant = (_end(over_fit.averaged, name) for name in ("none", "decay", "constant"))
    shown = f"{thousandths(none)} without a teacher, {thousandths(decay)} with a weight that only decays, "
    shown += f"{thousandths(constant)} with a constant one"
    said = f"True risk at the end, averaged teacher: {shown}."
    if constant < decay <= none:
        lost = (decay - constant) / (none - constant)
        return (
            f"{said} Its late pull reduces over-fitting, and a weight that goes to zero gives {lost:.0%} of that back: "
            "the abstract's claim that the decay removes the bias of an over-fitted teacher does not appear here."
        )
    if decay < min(none, constant):
        return f"{said} The decay is the best of the three, as the abstract says."
    return f"{said} The abstract's claim about the decay does not appear."


def _lag(over_fit: OverFit) -> str:
    curves = over_fit.averaged["none"]
    after = len(curves.teacher_risk) // 20
    share = float(np.mean(curves.teacher_risk[after:] <= curves.student_risk[after:]))
    said = (
        "Followed passively, the averaged teacher's true risk is at or below its student's in "
        f"{share:.0%} of the epochs after the first twentieth"
    )
    return f"{said}: it is not the more over-fitted of the two." if share > 0.5 else f"{said}."


def _own_teacher(over_fit: OverFit) -> str:
    none, decay, constant = (_end(over_fit.trained, name) for name in ("none", "decay", "constant"))
    said = (
        "A teacher trained on the labels itself over-fits on its own "
        f"(true risk {thousandths(float(over_fit.trained['none'].teacher_risk[-1]))}). Its students end at "
        f"{thousandths(none)} without, {thousandths(decay)} with decaying and {thousandths(constant)} with constant "
        "weight: "
    )
    if max(none, decay, constant) / min(none, decay, constant) - 1 < 0.02:
        return said + "within 2 % of each other, because student and teacher tend to the same training optimum."
    if decay < constant:
        return said + "the decay helps against this teacher, as the abstract says."
    return said + "the decay does not help against this teacher either."


# ---------------------------------------------------------------------- collapse


def _collapse(collapse: Collapse, settings: Settings) -> Iterator[str]:
    landscape = collapse.landscape
    yield "## Collapse, by outcome"
    yield ""
    yield from table(*collapse_table(collapse))
    yield ""
    yield (
        f"Stuck: the student's loss never came to {landscape.solved:g} within {landscape.steps} steps, with the 95 % "
        f"Wilson interval / median exit step of the others / homogenised share of the time on the plateau (distance "
        f"below {landscape.near:g} and both losses above {landscape.solved:g}), which decides nothing."
    )
    yield ""
    yield f"* {_closed_form(collapse, settings)}"
    yield from (f"* {sentence}" for sentence in (*_harmless(collapse), *_weight(collapse), *_starts(collapse)))


def collapse_table(collapse: Collapse) -> tuple[list[str], list[list[str]]]:
    """Give heading and rows of the outcomes, a row a weight."""
    weights = [*dict.fromkeys(weight for weight, _ in collapse.outcomes)]
    starts = [*dict.fromkeys(start for _, start in collapse.outcomes)]
    rows = [[weight, *(_cell(collapse.outcomes[weight, start]) for start in starts)] for weight in weights]
    return ["W", *(f"teacher: {start}" for start in starts)], rows


def _cell(outcome: Outcome) -> str:
    exits = "n/a" if math.isnan(outcome.median_exit) else f"{outcome.median_exit:.0f}"
    interval = f"{outcome.low:.4f} to {outcome.high:.4f}"
    return f"{outcome.share:.4f} ({interval}) / {exits} / {outcome.homogenised:.2f}"


def _closed_form(collapse: Collapse, settings: Settings) -> str:
    lr, decay = collapse.landscape.lr, settings["decay"]
    parts = []
    for weight in settings["collapse"]["weights"]:
        factor = escape_factor(weight, lr, decay)
        doubling = f"doubling in {math.log(2) / math.log(factor):.0f} steps" if factor > 1 else "no escape"
        parts.append(f"{factor:.4f} at W = {weight:g} ({doubling})")
    heaviest = max(settings["collapse"]["weights"])
    return (
        f"Closed form: student and teacher leave the saddle together by a factor a step of {', '.join(parts)}; two "
        f"independent starts begin with {independent_amplitude(heaviest, lr, decay):.2f} times the escaping amplitude "
        f"of two equal ones (W = {heaviest:g})."
    )


def _harmless(collapse: Collapse) -> Iterator[str]:
    outcome = collapse.outcomes.get(("0", "copy"))
    if outcome is None:
        return
    if outcome.stuck == 0:
        yield (
            f"Without any weight (W = 0) a copied teacher counts as homogenised {outcome.homogenised:.0%} of the time, "
            "and no run is stuck: closeness is not collapse."
        )
    else:
        yield f"Already without a teacher's weight {outcome.share:.2%} of the runs are stuck."


def _weight(collapse: Collapse) -> Iterator[str]:
    weights = [*dict.fromkeys(weight for weight, _ in collapse.outcomes)]
    worst = {w: max(o.share for (weight, _), o in collapse.outcomes.items() if weight == w) for w in weights}
    *constant, decaying = weights
    heaviest = max(constant, key=float)
    listed = ", ".join(f"{worst[w]:.2%} (W = {w})" for w in constant)
    yield f"Stuck runs of the worst start: {listed}."
    if worst[heaviest] == 0:
        yield "No weight gets a run stuck in this setting, so it does not tell the starts apart."
    elif worst[decaying] < 0.5 * worst[heaviest]:
        yield f"Letting the largest weight decay leaves {worst[decaying]:.2%}: it removes the failures or most of them."
    else:
        yield f"Letting the largest weight decay still leaves {worst[decaying]:.2%}."


def _starts(collapse: Collapse) -> Iterator[str]:
    weights = [*dict.fromkeys(weight for weight, _ in collapse.outcomes)][:-1]
    heaviest = max(weights, key=float)
    found = {start: outcome for (weight, start), outcome in collapse.outcomes.items() if weight == heaviest}
    copy, own = found["copy"], found["own"]
    if own.low > copy.high:
        yield (
            f"At W = {heaviest} an untrained own draw is stuck more often than a copy ({own.share:.2%} against "
            f"{copy.share:.2%}, intervals apart): independence alone does not prevent collapse here."
        )
    elif own.high < copy.low:
        yield (
            f"At W = {heaviest} an own draw is stuck less often than a copy ({own.share:.2%} against {copy.share:.2%}, "
            "intervals apart), as the abstract says."
        )
    else:
        yield f"At W = {heaviest} own draw and copy cannot be told apart ({own.share:.2%}, {copy.share:.2%})."
    trained = {start: outcome for start, outcome in found.items() if start not in ("copy", "own")}
    if trained:
        start, best = min(trained.items(), key=lambda item: item[1].share)
        if best.high < min(own.low, copy.low):
            yield f"A teacher that is ahead helps: {start} leaves {best.share:.2%} stuck, fewer than both untrained."
        else:
            yield f"The best initialisation ({start}, {best.share:.2%}) is not surely below both untrained starts."


# ---------------------------------------------------------------------- sweeps


def _sweeps(points: Sequence[SweepPoint], risks: Risks, settings: Settings) -> Iterator[str]:
    early, late = risks.epochs[0], risks.epochs[-1]
    yield "## Sweeps"
    yield ""
    yield (
        "Range over each sweep, one thing varied at a time; the values are in sweeps.csv. Risks from the scheme of "
        f"dkel, stuck runs from a constant weight of {settings['collapse']['weight']:g} with an own draw that is kept."
    )
    yield ""
    heading = [
        "varied",
        f"student {early}",
        f"student {late}",
        f"teacher {early}",
        f"diversity {late}",
        "stuck runs",
    ]
    rows = []
    for name in dict.fromkeys(point.sweep for point in points):
        chosen = [point for point in points if point.sweep == name]
        pairs = [
            [point.curves.student_risk[early] for point in chosen],
            [point.curves.student_risk[late] for point in chosen],
            [point.curves.teacher_risk[early] for point in chosen],
            [point.curves.diversity[late] for point in chosen],
        ]
        ranges = [f"{thousandths(min(pair))} to {thousandths(max(pair))}" for pair in pairs]
        shares = [point.outcome.share for point in chosen]
        values = f"{name} ({chosen[0].value} to {chosen[-1].value})"
        rows.append([values, *ranges, f"{min(shares):.3f} to {max(shares):.3f}"])
    yield from table(heading, rows)
