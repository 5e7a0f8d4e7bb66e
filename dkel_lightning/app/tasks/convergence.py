"""task=convergence: the noisy quadratic model and the collapse experiment, into figures and tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dkel_lightning.app import drawing
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.tables import write_csv
from dkel_lightning.app.study_figures import convergence_figures
from dkel_lightning.settings.declarations import from_mapping
from dkel_lightning.studies.convergence import Curves, settled
from dkel_lightning.studies.convergence_settings import ConvergenceSettings
from dkel_lightning.studies.convergence_study import Collapse, OverFit, Panel, Risks, Study, study


@dataclass(frozen=True)
class ConvergenceResult:
    """What the task gave: its folder, and everything that it computed."""

    folder: Path
    study: Study

    @property
    def objective(self) -> float:
        """The exact student risk of dkel's scheme at the end of the run."""
        return float(self.study.risks.curves["dkel"].student_risk[-1])


def convergence(run: Run) -> ConvergenceResult:
    """Compute and write figures and CSV files into the run's folder; builds neither data nor networks.

    Raises:
        ConfigError: settings under which the model diverges.
    """
    settings = from_mapping(ConvergenceSettings, run.values["convergence"], "convergence")
    threads = run.values["execution"]["threads"] or min(4, os.cpu_count() or 1)  # which change no result
    found = study(settings, run.values["seed"], threads)
    run.describe()
    written = tables(found)
    for name, lines in written.items():
        write_csv(run.folder / f"{name}.csv", lines)
    drawing.save_all(convergence_figures.draw(found), run.folder / "figures", run.values["figures"]["also"])
    print(f"Written to {run.folder}: {', '.join(f'{name}.csv' for name in written)}, figures/*.png.")
    return ConvergenceResult(run.folder, found)


# ---------------------------------------------------------------------- files


def tables(found: Study) -> dict[str, list[list[str]]]:
    """Give the CSV files by name, numbers with six digits."""
    made = {
        "risks": _risks(found.risks),
        "curves": _curves(found.risks),
        "homogenisation": _homogenisation(found.panel),
        "over_fitting": _over_fitting(found.over_fit),
        "collapse": _collapse(found.collapse),
        "sweeps": _sweeps(found),
    }
    return {name: [[_cell(value) for value in row] for row in rows] for name, rows in made.items()}


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


Rows = Iterator[list[Any]]
EXACT = ("student_risk", "mean_student_risk", "teacher_risk", "diversity", "distance", "relative_distance")
TIMES = ["settled in the first phase", "settled in the run"]
TIMES += [f"time of a run {which}" for which in ("2.5 %", "median", "97.5 %")]
OUTCOME = ("runs", "stuck", "share", "low", "high", "median_exit", "homogenised")


def _at(curves: Curves, names: Sequence[str], epochs: Sequence[int]) -> list[float]:
    return [float(getattr(curves, name)[epoch]) for name in names for epoch in epochs]


def _risks(risks: Risks) -> Rows:
    epochs = [*risks.epochs, risks.problem.epochs]
    yield ["scheme", *(f"{name} {epoch}" for name in EXACT for epoch in epochs), *TIMES]
    for role, scheme in risks.schemes.items():
        curves = risks.curves[role]
        first = settled(curves.student_risk[: risks.problem.first_phase + 1])
        ends = [str(first), str(settled(curves.student_risk)), *risks.times(role)]
        yield [scheme.label, *_at(curves, EXACT, epochs), *ends]


def _curves(risks: Risks) -> Rows:
    heading = ["scheme", "epochs done", "W of the last epoch", *EXACT, *(f"simulated {name}" for name in EXACT)]
    yield [*heading, "student risk 2.5 % of runs", "student risk 97.5 % of runs"]
    for role, scheme in risks.schemes.items():
        runs = risks.simulated[role]
        weights = [np.nan, *(scheme.weight(epoch) for epoch in range(risks.problem.epochs))]
        columns = [getattr(source, name) for source in (risks.curves[role], runs.mean) for name in EXACT]
        for epoch, row in enumerate(zip(weights, *columns, runs.low, runs.high, strict=True)):
            yield [scheme.label, str(epoch), *row]


def _homogenisation(panel: Panel) -> Rows:
    quantities = ["relative distance", "relative diversity of the teachers", "distance to optimum"]
    yield ["weight", "teacher", "step", *quantities]
    for (weights, start), curves in panel.curves.items():
        rows = zip(curves.relative_distance, curves.relative_spread, np.sqrt(curves.square_teacher), strict=True)
        for step, row in zip(panel.steps, rows, strict=True):
            yield [weights, start, str(step), *row]


def _over_fitting(found: OverFit) -> Rows:
    yield ["teacher", "weight", "epochs done", "true student risk", "true teacher risk"]
    for kind, by_name in (("averaged", found.averaged), ("trained", found.trained)):
        for name, curves in by_name.items():
            for epoch, row in enumerate(zip(curves.student_risk, curves.teacher_risk, strict=True)):
                yield [kind, found.labels[name], str(epoch), *row]


def _collapse(found: Collapse) -> Rows:
    yield ["W", "teacher", *OUTCOME]
    for (weight, start), outcome in found.outcomes.items():
        yield [weight, start, *(getattr(outcome, name) for name in OUTCOME)]


def _sweeps(found: Study) -> Rows:
    epochs = [*found.risks.epochs, found.risks.problem.epochs]
    quantities = ("student_risk", "teacher_risk", "diversity")
    yield ["sweep", "value", *(f"{name} {epoch}" for name in quantities for epoch in epochs), *OUTCOME]
    for point in found.sweeps:
        outcome = [getattr(point.outcome, name) for name in OUTCOME]
        yield [point.sweep, point.value, *_at(point.curves, quantities, epochs), *outcome]
