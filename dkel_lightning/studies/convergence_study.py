"""The experiments of task=convergence: which schemes, starts and weights are set beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dkel_lightning.ema import START_OFFSETS
from dkel_lightning.studies.collapse import Outcome, simulate
from dkel_lightning.studies.convergence import Curves, Scheme, exact
from dkel_lightning.studies.convergence_settings import CollapseSettings, ConvergenceSettings
from dkel_lightning.studies.monte_carlo import Simulation, monte_carlo
from dkel_lightning.studies.recursion import relative_distance_floor


@dataclass(frozen=True)
class Risks:
    """The schemes of the noisy quadratic model by role, their exact curves, and the runs over them."""

    problem: ConvergenceSettings
    schemes: Mapping[str, Scheme]
    curves: Mapping[str, Curves]
    simulated: Mapping[str, Simulation]

    @property
    def epochs(self) -> list[int]:
        """The epochs that a table shows."""
        return sorted(e for e in {1, 5, 20, 80, self.problem.first_phase} if 0 < e <= self.problem.first_phase)

    def times(self, role: str) -> tuple[float, float, float]:
        """Give when runs of a scheme come to 1.1 times its risk at the end of the first phase; see Simulation."""
        threshold = 1.1 * float(self.curves[role].student_risk[self.problem.first_phase])
        return self.simulated[role].times(threshold)


@dataclass(frozen=True)
class Panel:
    """Homogenisation without noise, in one direction.

    Attributes:
        steps: the steps at which the curves are recorded.
        floor: h / (h + W), the relative distance that a constant weight ends in.
        curves: by weight (`constant`, `decay`) and start (`copy`, `own`).
    """

    steps: list[int]
    floor: float
    curves: Mapping[tuple[str, str], Curves]


@dataclass(frozen=True)
class OverFit:
    """True risk where the training optimum is not the true one, with averaged and with gradient-trained teachers."""

    labels: Mapping[str, str]
    averaged: Mapping[str, Curves]
    trained: Mapping[str, Curves]


@dataclass(frozen=True)
class SweepPoint:
    """One value of one sweep, in both models."""

    sweep: str
    value: str
    curves: Curves
    outcome: Outcome


@dataclass(frozen=True)
class Collapse:
    """The collapse experiment: outcomes by weight and start."""

    landscape: CollapseSettings
    outcomes: Mapping[tuple[str, str], Outcome]


@dataclass(frozen=True)
class Study:
    """All that the task computes."""

    risks: Risks
    panel: Panel
    over_fit: OverFit
    collapse: Collapse
    sweeps: tuple[SweepPoint, ...]


def study(settings: ConvergenceSettings, seed: int, workers: int = 1) -> Study:
    """Compute everything.

    Raises:
        ConfigError: a combination that diverges.
    """
    problem = replace(settings, shift=0.0)  # but for the over-fit, the optimum of the training data is the true one
    return Study(
        risks=risks(problem, seed, workers),
        panel=panel(problem),
        over_fit=over_fit(settings),
        collapse=collapse(settings, seed),
        sweeps=tuple(sweeps(problem, seed)),
    )


def base_scheme(settings: ConvergenceSettings) -> Scheme:
    """Read the scheme that the others vary: dkel with a kept draw of its own."""
    return Scheme("dkel", scale=settings.lambda_, k=settings.k, rampup=settings.rampup, decay=settings.decay)


def schemes_of(settings: ConvergenceSettings) -> dict[str, Scheme]:
    """Name the schemes of the table of risks by their roles."""
    dkel = base_scheme(settings)
    slow, init = settings.slow_k, settings.init_steps
    return {
        "none": replace(dkel, label="no distillation", scale=0.0),
        "pcl": replace(dkel, label="pcl: ramp-up only, copy", weights="ramp", start="copy", draw="student"),
        "dkel": replace(dkel, label=f"dkel: k {dkel.k:g}, own draw, keep"),
        "copy": replace(dkel, label="dkel, copied teacher", start="copy", draw="student"),
        "mean_teacher": replace(dkel, label="dkel, mean_teacher rule", start="mean_teacher"),
        "ahead": replace(dkel, label=f"dkel, {init} init steps", init_steps=init),
        "slow": replace(dkel, label=f"dkel, k {slow:g}", k=slow),
        "slow_ahead": replace(dkel, label=f"dkel, k {slow:g}, {init} init steps", k=slow, init_steps=init),
        "weak": replace(
            dkel, label=f"dkel, k {slow:g}, lambda {settings.weak_lambda:g}", k=slow, scale=settings.weak_lambda
        ),
    }


def risks(problem: ConvergenceSettings, seed: int, workers: int) -> Risks:
    """Compute the table of risks, exactly and by simulation."""
    schemes = schemes_of(problem)
    listed = list(schemes.values())
    curves = dict(zip(schemes, exact(problem, listed), strict=True))
    simulated = monte_carlo(problem, listed, problem.runs, seed, workers)
    return Risks(problem, schemes, curves, dict(zip(schemes, simulated, strict=True)))


def panel(problem: ConvergenceSettings) -> Panel:
    """Compute the panel of homogenisation: constant and decaying weight, copied and own teacher."""
    own = problem.homogenisation
    last, per_epoch = max(own.at), own.steps_per_epoch
    alone = replace(
        problem,
        curvatures=(own.curvature,),
        noise=0.0,
        milestones=(),
        epochs=max(2, -(-last // per_epoch)),
        steps_per_epoch=per_epoch,
    )
    base = replace(base_scheme(problem), decay=own.decay)
    schemes = {
        (weights, start): replace(base, label=f"{weights}, {start}", weights=weights, **how)
        for weights in ("constant", "decay")
        for start, how in STARTS.items()
    }
    steps = sorted({*own.at, *np.unique(np.geomspace(1, last, 400).astype(int)).tolist()})
    found = exact(alone, list(schemes.values()), at=steps)
    return Panel(
        steps=steps,
        floor=relative_distance_floor(own.curvature, problem.lambda_),
        curves=dict(zip(schemes, found, strict=True)),
    )


STARTS: dict[str, dict[str, Any]] = {
    "copy": {"draw": "student", "start": "copy"},
    "own": {"draw": "independent", "start": "keep"},
}


def over_fit(settings: ConvergenceSettings) -> OverFit:
    """Compute true risks with a training optimum that is not the true one."""
    base, slow = base_scheme(settings), settings.slow_k
    schemes = {
        "none": replace(base, label="no teacher", scale=0.0),
        "decay": replace(base, label=f"decaying only (k {slow:g})", k=slow, weights="decay"),
        "ramp": replace(base, label="ramped up, as pcl", weights="ramp", **STARTS["copy"]),
        "complement": replace(base, label=f"decaying (k {slow:g}) + ramped up", k=slow),
        "constant": replace(base, label="constant", weights="constant"),
    }
    averaged = exact(settings, list(schemes.values()))
    # A gradient teacher starts from a draw of its own: as a copy under the same gradient it would be the student.
    alone = [replace(scheme, update="gradient", draw="independent") for scheme in schemes.values()]
    return OverFit(
        labels={name: scheme.label for name, scheme in schemes.items()},
        averaged=dict(zip(schemes, averaged, strict=True)),
        trained=dict(zip(schemes, exact(settings, alone), strict=True)),
    )


def collapse(settings: ConvergenceSettings, seed: int) -> Collapse:
    """Run every weight, constant and the largest one decaying too, from every start."""
    own = settings.collapse
    base = Scheme("constant", k=0.0, decay=settings.decay)
    starts = {name: replace(base, **how) for name, how in STARTS.items()}
    starts |= {f"own + {count} steps": replace(base, init_steps=count) for count in own.init_steps}
    weights = [(f"{weight:g}", weight, 0.0) for weight in own.weights]
    heaviest = max(own.weights)
    weights.append((f"{heaviest:g} exp(-{settings.k:g} e)", heaviest, settings.k))
    outcomes = {
        (label, start): simulate(own, replace(each, scale=weight, k=k), own.runs, seed, settings.steps_per_epoch)
        for label, weight, k in weights
        for start, each in starts.items()
    }
    return Collapse(own, outcomes)


# ---------------------------------------------------------------------- sweeps


def sweeps(problem: ConvergenceSettings, seed: int) -> Iterator[SweepPoint]:
    """Vary one thing at a time: exact curves of the quadratic model, shares of stuck runs of the other."""
    own, lists, per_epoch = problem.collapse, problem.sweeps, problem.steps_per_epoch
    scheme = base_scheme(problem)
    constant = replace(scheme, scale=own.weight, k=0.0)
    varied: list[tuple[str, str, dict[str, Any]]] = [("k", f"{k:g}", {"k": k}) for k in lists.k]
    varied += [("lambda", f"{scale:g}", {"scale": scale}) for scale in lists.lambda_]
    varied += [("EMA rate", f"{decay:g}", {"decay": decay}) for decay in lists.decay]
    varied += [
        ("draw, start rule", f"{name}, {start}", {"draw": how["draw"], "start": start})
        for name, how in STARTS.items()
        for start in START_OFFSETS
    ]
    varied += [("initialisation steps", str(count), {"init_steps": count}) for count in lists.init_steps]
    found = exact(problem, [replace(scheme, **change) for *_, change in varied])
    for (sweep, value, change), curves in zip(varied, found, strict=True):
        outcome = simulate(own, replace(constant, **change), own.sweep_runs, seed, per_epoch)
        yield SweepPoint(sweep, value, curves, outcome)
    for factor in lists.noise:
        louder = replace(problem, noise=factor * problem.noise), replace(own, noise=factor * own.noise)
        outcome = simulate(louder[1], constant, own.sweep_runs, seed, per_epoch)
        yield SweepPoint("noise, times", f"{factor:g}", exact(louder[0], [scheme])[0], outcome)
