"""When teachers help: which schemes, starts and weights task=convergence compares, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dkel_lightning.studies.collapse import Outcome, simulate
from dkel_lightning.studies.convergence import (
    Curves,
    Problem,
    Scheme,
    Simulation,
    exact,
    monte_carlo,
    settling_epoch,
)
from dkel_lightning.studies.settings import ConvergenceSettings

SLOW_K, WEAK_LAMBDA, INIT_STEPS, SHIFT = 0.05, 0.1, 200, 0.02
STARTS: dict[str, dict[str, Any]] = {
    "copy": {"draw": "student", "start": "copy"},
    "own": {"draw": "independent", "start": "keep"},
}
HOMOGENISATION = Problem(epochs=21, steps_per_epoch=391, curvatures=(0.1,), noise=0.0, milestones=())
HOMOGENISATION_STEPS = (100, 300, 1000, 3000, 7900)
COLLAPSE_WEIGHTS = (0.0, 1.0, 3.0)


@dataclass(frozen=True)
class Study:
    """Everything that the task computes.

    Attributes:
        schemes: of the noisy quadratic model, by role, as are `curves` (exact) and `simulations`.
        homogenisation: curves over `steps` without noise, by weight (`constant`, `decay`) and start (`copy`, `own`).
        over_fitting: curves by teacher (`averaged`, `trained`) and label of the weight, with a training optimum that
            is not the true one.
        collapse: outcomes by weight and start.
    """

    problem: Problem
    schemes: Mapping[str, Scheme]
    curves: Mapping[str, Curves]
    simulations: Mapping[str, Simulation]
    steps: Sequence[int]
    homogenisation: Mapping[tuple[str, str], Curves]
    over_fitting: Mapping[tuple[str, str], Curves]
    collapse: Mapping[tuple[str, str], Outcome]


def study(settings: ConvergenceSettings, seed: int) -> Study:
    """Compute everything; only the simulations depend on the seed."""
    problem = Problem(epochs=settings.epochs, milestones=(settings.epochs // 2, 3 * settings.epochs // 4))
    dkel = Scheme("dkel", scale=settings.lambda_, k=settings.k, decay=settings.decay)
    schemes = schemes_of(dkel)
    listed = list(schemes.values())
    steps = np.unique([*HOMOGENISATION_STEPS, *np.geomspace(1, max(HOMOGENISATION_STEPS), 400).astype(int)]).tolist()
    return Study(
        problem,
        schemes,
        dict(zip(schemes, exact(problem, listed), strict=True)),
        dict(zip(schemes, monte_carlo(problem, listed, settings.runs, seed), strict=True)),
        steps,
        homogenisation(dkel, steps),
        over_fitting(problem, dkel),
        collapse(dkel, 5 * settings.runs, seed),
    )


def schemes_of(dkel: Scheme) -> dict[str, Scheme]:
    """List the schemes of the noisy quadratic model by role; all vary dkel with an independent teacher."""
    slow = replace(dkel, label=f"dkel, k {SLOW_K:g}", k=SLOW_K)
    return {
        "none": replace(dkel, label="no distillation", scale=0.0),
        "pcl": replace(dkel, label="pcl: ramp-up only, copy", weights="ramp", **STARTS["copy"]),
        "dkel": replace(dkel, label=f"dkel: k {dkel.k:g}, own draw, keep"),
        "copy": replace(dkel, label="dkel, copied teacher", **STARTS["copy"]),
        "mean_teacher": replace(dkel, label="dkel, mean_teacher rule", start="mean_teacher"),
        "ahead": replace(dkel, label=f"dkel, {INIT_STEPS} init steps", init_steps=INIT_STEPS),
        "slow": slow,
        "slow_ahead": replace(slow, label=f"{slow.label}, {INIT_STEPS} init steps", init_steps=INIT_STEPS),
        "weak": replace(slow, label=f"{slow.label}, lambda {WEAK_LAMBDA:g}", scale=WEAK_LAMBDA),
    }


def homogenisation(dkel: Scheme, steps: Sequence[int]) -> dict[tuple[str, str], Curves]:
    """Compare constant and decaying weights, copied and independent teachers, in one direction without noise."""
    schemes = {
        (weights, start): replace(dkel, decay=0.999, weights=weights, **how)
        for weights in ("constant", "decay")
        for start, how in STARTS.items()
    }
    return dict(zip(schemes, exact(HOMOGENISATION, list(schemes.values()), at=steps), strict=True))


def over_fitting(problem: Problem, dkel: Scheme) -> dict[tuple[str, str], Curves]:
    """Compute true risks where the training optimum is not the true one."""
    weights = [
        replace(dkel, label="no teacher", scale=0.0),
        replace(dkel, label=f"decaying only (k {SLOW_K:g})", k=SLOW_K, weights="decay"),
        replace(dkel, label="ramped up, as pcl", weights="ramp", **STARTS["copy"]),
        replace(dkel, label=f"decaying (k {SLOW_K:g}) + ramped up", k=SLOW_K),
        replace(dkel, label="constant", weights="constant"),
    ]
    schemes = {("averaged", scheme.label): scheme for scheme in weights}
    # A gradient teacher starts from its own draw: as a copy under the same gradient it would be the student.
    for scheme in weights:
        schemes["trained", scheme.label] = replace(scheme, update="gradient", draw="independent")
    return dict(zip(schemes, exact(replace(problem, shift=SHIFT), list(schemes.values())), strict=True))


def collapse(dkel: Scheme, runs: int, seed: int) -> dict[tuple[str, str], Outcome]:
    """Simulate every weight, constant and the largest one decaying too, from every start of the teacher."""
    starts = STARTS | {f"own + {count} steps": {"init_steps": count} for count in (20, 100)}
    largest = max(COLLAPSE_WEIGHTS)
    weights = [(f"{weight:g}", weight, 0.0) for weight in COLLAPSE_WEIGHTS]
    weights.append((f"{largest:g} exp(-{dkel.k:g} e)", largest, dkel.k))
    return {
        (label, start): simulate(replace(dkel, scale=weight, k=k, **how), runs, seed)
        for label, weight, k in weights
        for start, how in starts.items()
    }


def tables(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Make the tables by name, a mapping from column to value per row."""
    fall = study.problem.milestones[0] - 1  # the last epoch before the learning rate first falls
    epochs = [*(epoch for epoch in (1, 5, 20, 80) if epoch < fall), fall, study.problem.epochs]

    def risks(role: str) -> dict[str, Any]:
        curves = study.curves[role]
        names = ("student_risk", "teacher_risk", "diversity")
        first = curves.student_risk[: fall + 1]
        low, median, high = study.simulations[role].times(1.1 * first[-1])
        return {
            "scheme": study.schemes[role].label,
            **{f"{name} {epoch}": getattr(curves, name)[epoch] for name in names for epoch in epochs},
            "settled in the first phase": settling_epoch(first),
            "time of a run 2.5 %": low,
            "time of a run median": median,
            "time of a run 97.5 %": high,
        }

    return {
        "risks": [risks(role) for role in study.schemes],
        "homogenisation": [
            {
                "weight": weight,
                "teacher": start,
                "step": step,
                "relative distance": curves.relative_distance[place],
                "relative diversity of the teachers": curves.relative_spread[place],
                "distance to optimum": curves.square_teacher[place] ** 0.5,
            }
            for (weight, start), curves in study.homogenisation.items()
            for place, step in ((study.steps.index(step), step) for step in HOMOGENISATION_STEPS)
        ],
        "over_fitting": [
            {
                "teacher": teacher,
                "weight": label,
                "true student risk at the end": curves.student_risk[-1],
                "true teacher risk at the end": curves.teacher_risk[-1],
            }
            for (teacher, label), curves in study.over_fitting.items()
        ],
        "collapse": [
            {"W": weight, "teacher": start, **asdict(outcome)} for (weight, start), outcome in study.collapse.items()
        ],
    }
