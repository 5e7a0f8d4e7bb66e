"""task=convergence: the noisy quadratic model and the collapse experiment, into figures, tables and a reading."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dkel_lightning.app.loggers.metrics_file import write_whole
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.study_figures import convergence_figures
from dkel_lightning.app.tasks import convergence_reading
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.studies.convergence import settled
from dkel_lightning.studies.convergence_study import OverFit, Panel, Risks, Study, study

Lines = list[list[str]]


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
    """Compute and write figures, CSV files and reading.md into the run's folder; builds neither data nor networks.

    Raises:
        ConfigError: settings under which the model diverges.
    """
    settings = run.values["convergence"]
    begun = time.perf_counter()
    found = study(settings, run.values["seed"], workers(run.values["execution"]["threads"]))
    run.describe()
    for name, lines in tables(found).items():
        write_whole(run.folder / f"{name}.csv", lines)
    write_text(run.folder / "reading.md", convergence_reading.write(found, settings))
    convergence_figures.draw(found, run.folder / "figures")
    show(found, time.perf_counter() - begun)
    print(f"Written to {run.folder}: reading.md, {', '.join(f'{name}.csv' for name in tables(found))}, figures/*.png.")
    return ConvergenceResult(run.folder, found)


def workers(threads: int | None) -> int:
    """Give the number of threads that simulate; it changes no result."""
    return threads or min(4, os.cpu_count() or 1)


# ---------------------------------------------------------------------- files


def tables(found: Study) -> dict[str, Lines]:
    """Give the CSV files by name, in full precision."""
    return {
        "risks": [*_risks(found.risks)],
        "curves": [*_curves(found.risks)],
        "homogenisation": [*_homogenisation(found.panel)],
        "over_fitting": [*_over_fitting(found.over_fit)],
        "collapse": [*_collapse(found)],
        "sweeps": [*_sweeps(found)],
    }


def _plain(values: Sequence[float]) -> list[str]:
    return [f"{value:.6g}" for value in values]


def _risks(risks: Risks) -> Iterator[list[str]]:
    epochs = [*risks.epochs, risks.problem.epochs]
    quantities = ("student_risk", "mean_student_risk", "teacher_risk", "diversity", "distance", "relative_distance")
    yield ["scheme", *(f"{name} {epoch}" for name in quantities for epoch in epochs), *TIMES]
    for role, scheme in risks.schemes.items():
        curves = risks.curves[role]
        values = [float(getattr(curves, name)[epoch]) for name in quantities for epoch in epochs]
        first = curves.student_risk[: risks.problem.first_phase + 1]
        whole = settled(curves.student_risk)
        yield [
            scheme.label,
            *_plain(values),
            str(settled(first)),
            str(whole),
            *_plain(convergence_reading.times(risks, role)),
        ]


TIMES = (
    "settled in the first phase",
    "settled in the run",
    "time of a run 2.5 %",
    "time of a run median",
    "time of a run 97.5 %",
)


def _curves(risks: Risks) -> Iterator[list[str]]:
    exact = ("student_risk", "mean_student_risk", "teacher_risk", "diversity", "distance", "relative_distance")
    heading = ["scheme", "epochs done", "W of the last epoch", *exact, *(f"simulated {name}" for name in exact)]
    yield [*heading, "student risk 2.5 % of runs", "student risk 97.5 % of runs"]
    for role, scheme in risks.schemes.items():
        curves, runs = risks.curves[role], risks.simulated[role]
        columns = [[np.nan, *(scheme.weight(epoch) for epoch in range(risks.problem.epochs))]]
        columns += [list(getattr(source, name)) for source in (curves, runs.mean) for name in exact]
        columns += [list(runs.low), list(runs.high)]
        for epoch, row in enumerate(zip(*columns, strict=True)):
            yield [scheme.label, str(epoch), *_plain(row)]


def _homogenisation(panel: Panel) -> Iterator[list[str]]:
    yield [
        "weight",
        "teacher",
        "step",
        "relative distance",
        "relative diversity of the teachers",
        "distance to optimum",
    ]
    for (weights, start), curves in panel.curves.items():
        rows = zip(curves.relative_distance, curves.relative_spread, np.sqrt(curves.square_teacher), strict=True)
        for step, row in zip(panel.steps, rows, strict=True):
            yield [weights, start, str(step), *_plain(row)]


def _over_fitting(found: OverFit) -> Iterator[list[str]]:
    yield ["teacher", "weight", "epochs done", "true student risk", "true teacher risk"]
    for kind, by_name in (("averaged", found.averaged), ("trained", found.trained)):
        for name, curves in by_name.items():
            for epoch, row in enumerate(zip(curves.student_risk, curves.teacher_risk, strict=True)):
                yield [kind, found.labels[name], str(epoch), *_plain(row)]


OUTCOME = ("runs", "stuck", "share", "low", "high", "median_exit", "homogenised")


def _collapse(found: Study) -> Iterator[list[str]]:
    yield ["W", "teacher", *OUTCOME]
    for (weight, start), outcome in found.collapse.outcomes.items():
        yield [weight, start, *_plain([getattr(outcome, name) for name in OUTCOME])]


def _sweeps(found: Study) -> Iterator[list[str]]:
    epochs = [*found.risks.epochs, found.risks.problem.epochs]
    quantities = ("student_risk", "teacher_risk", "diversity")
    yield ["sweep", "value", *(f"{name} {epoch}" for name in quantities for epoch in epochs), *OUTCOME]
    for point in found.sweeps:
        values = [float(getattr(point.curves, name)[epoch]) for name in quantities for epoch in epochs]
        outcome = [getattr(point.outcome, name) for name in OUTCOME]
        yield [point.sweep, point.value, *_plain(values), *_plain(outcome)]


# ---------------------------------------------------------------------- terminal


def show(found: Study, seconds: float, console: Console | None = None) -> None:
    """Print the table of risks, the true risks and the outcomes of the collapse experiment."""
    console = console or Console(width=None if Console().is_terminal else 120)
    reading = convergence_reading
    heading, rows = reading.risk_table(found.risks)
    # The others are in reading.md.
    chosen = {f"student {epoch}" for epoch in (*found.risks.epochs[:3], found.risks.epochs[-1])}
    chosen |= {heading[0], f"teacher {found.risks.epochs[0]}", "settled", *(h for h in heading if "diversity" in h)}
    kept = [position for position, name in enumerate(heading) if name in chosen]
    shown = [[row[position] for position in kept] for row in rows]
    _print(console, "Risk times 1000 after epochs", [heading[position] for position in kept], shown)
    _print(
        console, "True risk times 1000 at the end, training optimum shifted", *reading.over_fit_table(found.over_fit)
    )
    _print(console, "Stuck runs / median exit step / homogenised share", *_short(found))
    console.print(f"{seconds:.0f} seconds.")


def _short(found: Study) -> tuple[list[str], list[list[str]]]:
    heading, _ = convergence_reading.collapse_table(found.collapse)
    rows: dict[str, list[str]] = {}
    for (weight, _), outcome in found.collapse.outcomes.items():
        cell = f"{outcome.share:.2%} / {outcome.median_exit:.0f} / {outcome.homogenised:.2f}"
        rows.setdefault(weight, [weight]).append(cell)
    return heading, [*rows.values()]


def _print(console: Console, title: str, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shown = Table(title=title, title_justify="left")
    for position, name in enumerate(heading):
        shown.add_column(name, justify="left" if position == 0 else "right", no_wrap=position == 0)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
