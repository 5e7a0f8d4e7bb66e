"""The noisy quadratic model: tables of the analysis, closed forms, and Monte-Carlo against exact moments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dkel_lightning.errors import ConfigError
from dkel_lightning.studies import recursion
from dkel_lightning.studies.convergence import (
    QUANTITIES,
    Curves,
    Problem,
    Scheme,
    Simulation,
    exact,
    monte_carlo,
    settling_epoch,
)
from tests.studies import closed_forms

DKEL = Scheme("dkel")
SCHEMES = {
    "none": Scheme("none", scale=0.0),
    "pcl": Scheme("pcl", weights="ramp", start="copy", draw="student"),
    "dkel": DKEL,
    "copied": replace(DKEL, start="copy", draw="student"),
    "mean_teacher": replace(DKEL, start="mean_teacher"),
    "ahead": replace(DKEL, init_steps=200),
    "slow": replace(DKEL, k=0.05),
    "slow, ahead": replace(DKEL, k=0.05, init_steps=200),
    "weak": replace(DKEL, k=0.05, scale=0.1),
}
# Student risk after epochs 1, 5, 20, 80, 149; teacher risk after 1, 5, 20; diversity after 149. All times 1000.
TABLE = {
    "none": ([72, 39, 31, 29, 29], [261, 29, 8.6], 27),
    "pcl": ([71, 37, 28, 15, 15], [133, 27, 6.3], 13),
    "dkel": ([66, 30, 28, 15, 15], [257, 26, 6.0], 13),
    "copied": ([44, 31, 28, 15, 15], [66, 17, 6.3], 13),
    "mean_teacher": ([34, 29, 28, 15, 15], [48, 12, 5.9], 13),
    "ahead": ([17, 25, 28, 15, 15], [5, 4, 5.7], 13),
    "slow": ([66, 30, 23, 15, 15], [257, 35, 6.1], 13),
    "slow, ahead": ([17, 17, 21, 15, 15], [5, 3, 3.6], 13),
    "weak": ([56, 29, 28, 26, 26], [259, 21, 5.8], 23),
}


@pytest.fixture(scope="module")
def found() -> dict[str, Curves]:
    return dict(zip(SCHEMES, exact(Problem(epochs=150), list(SCHEMES.values())), strict=True))


@pytest.mark.parametrize("label", list(TABLE))
def test_exact_moments_give_the_table_of_risks(label: str, found: dict[str, Curves]) -> None:
    students, teachers, diversity = TABLE[label]
    curves = found[label]
    assert 1000 * curves.student_risk[[1, 5, 20, 80, 149]] == pytest.approx(students, abs=0.51)
    assert 1000 * curves.teacher_risk[[1, 5]] == pytest.approx(teachers[:2], abs=0.51)
    assert 1000 * curves.teacher_risk[20] == pytest.approx(teachers[2], abs=0.051)
    assert 1000 * curves.diversity[149] == pytest.approx(diversity, abs=0.51)


def test_without_noise_and_teacher_the_risk_falls_by_the_powers_of_one_direction() -> None:
    problem = Problem(curvatures=(0.5,), noise=0.0, epochs=3, steps_per_epoch=4, milestones=(2,))
    risk = exact(problem, [Scheme("none", scale=0.0)])[0].student_risk
    factors = [1, (1 - 0.05) ** 8, (1 - 0.05) ** 16, (1 - 0.05) ** 16 * (1 - 0.005) ** 8]
    assert risk == pytest.approx([0.25 * factor for factor in factors])


@pytest.mark.parametrize("start", ["keep", "copy", "mean_teacher"])
def test_a_mode_moves_as_the_recursion_of_both_analyses_says(start: str) -> None:
    problem = Problem(curvatures=(0.1,), epochs=3, steps_per_epoch=5)
    scheme = replace(DKEL, weights="constant", start=start)
    curves = exact(problem, [scheme])[0]
    risk = 0.0
    for share, coupling, variance in ((1 / 3, 1.0, 0.3 + 0.7 / 3), (2 / 3, -0.5, 0.7 * 2 / 3)):
        moments = share * np.eye(2)
        for a in recursion.ema_rates(start, 0.98, problem.steps):
            matrix = recursion.mode_matrix(0.1, 1.0, 0.1, a, coupling)
            moments = closed_forms.moment_step(moments, matrix, a, 0.1**2 * 0.1 * variance)
        risk += 0.05 * moments[1, 1]
    assert curves.teacher_risk[-1] == pytest.approx(risk)


def test_a_long_run_ends_in_the_stationary_variance_of_the_lyapunov_equation() -> None:
    problem = Problem(curvatures=(1.0,), epochs=150, milestones=())
    curves = exact(problem, [replace(DKEL, weights="constant")])[0]
    matrix = recursion.mode_matrix(1.0, 1.0, 0.1, 0.98, -0.5)
    stationary = closed_forms.stationary_covariance(matrix, 0.98, 0.01 * 0.7 * 2 / 3)
    assert curves.diversity[-1] == pytest.approx(stationary[0, 0])
    assert curves.teacher_spread[-1] == pytest.approx(stationary[1, 1])


# Relative own distance, relative teacher diversity, distance to the optimum after 100, 300, 1000, 3000, 7900 steps.
STEPS = [100, 300, 1000, 3000, 7900]
PANEL = {
    ("constant", "student", "copy"): (
        [0.09, 0.09, 0.09, 0.09, 0.09],
        [0.03, 0.01, 0, 0, 0],
        [0.48, 0.44, 0.39, 0.33, 0.21],
    ),
    ("constant", "independent", "keep"): (
        [1.14, 1.00, 0.50, 0.10, 0.09],
        [0.78, 0.69, 0.34, 0.02, 0],
        [0.92, 0.78, 0.56, 0.44, 0.29],
    ),
    ("decay", "student", "copy"): (
        [0.10, 0.09, 0.21, 0.75, 1.00],
        [0.03, 0.01, 0, 0, 0],
        [0.48, 0.43, 0.37, 0.14, 0.001],
    ),
    ("decay", "independent", "keep"): (
        [1.14, 1.01, 0.54, 0.75, 1.00],
        [0.78, 0.69, 0.36, 0.08, 0.06],
        [0.91, 0.77, 0.54, 0.20, 0.002],
    ),
}


@pytest.mark.parametrize("case", list(PANEL))
def test_the_panel_of_homogenisation(case: tuple[str, str, str]) -> None:
    weights, draw, start = case
    problem = Problem(curvatures=(0.1,), noise=0.0, milestones=(), epochs=21, steps_per_epoch=391)
    scheme = Scheme("panel", weights=weights, decay=0.999, draw=draw, start=start)
    curves = exact(problem, [scheme], at=STEPS)[0]
    distance, spread, remaining = PANEL[case]
    assert curves.relative_distance == pytest.approx(distance, abs=0.011)
    assert curves.relative_spread == pytest.approx(spread, abs=0.006)
    # The printed column was simulated: two in the last digit, and the two that are printed to 0.001 to one of them.
    assert np.sqrt(curves.square_teacher) == pytest.approx(remaining, abs=0.016)
    if weights == "decay":
        assert np.sqrt(curves.square_teacher[-1]) == pytest.approx(remaining[-1], abs=0.0006)


def test_true_risk_of_students_that_over_fit_and_a_teacher_of_its_own_that_does() -> None:
    schemes = {
        "none": Scheme("none", scale=0.0),
        "decay": replace(DKEL, k=0.05, weights="decay"),
        "ramp": SCHEMES["pcl"],
        "complement": replace(DKEL, k=0.05),
        "constant": replace(DKEL, weights="constant"),
    }
    problem = Problem(shift=0.02)
    averaged = exact(problem, list(schemes.values()))
    risk = {label: 1000 * curves.student_risk[-1] for label, curves in zip(schemes, averaged, strict=True)}
    # The printed figures came from 2,000 runs: 10 sqrt(2 * 3 / 2000) = 0.55 is the standard error of the shift alone.
    printed = {"none": 29.3, "decay": 28.5, "ramp": 25.1, "complement": 23.8, "constant": 23.2}
    assert risk == pytest.approx(printed, abs=2 * 0.55)
    assert risk["none"] > risk["decay"] > risk["ramp"] > risk["complement"] > risk["constant"]
    taught = exact(problem, [replace(scheme, update="gradient") for scheme in schemes.values()])
    alone = 1000 * averaged[0].student_risk[-1]
    assert [1000 * curves.teacher_risk[-1] for curves in taught] == pytest.approx([alone] * 5, abs=1e-9)


VARIED = [
    *SCHEMES.values(),
    replace(DKEL, update="gradient", weights="constant"),
    replace(DKEL, init_steps=20, start="copy", k=0.2, decay=0.9),
]


@pytest.fixture(scope="module")
def simulated() -> list[Simulation]:
    return monte_carlo(Problem(epochs=10, milestones=(6,), shift=0.02), VARIED, 1000, seed=0)


@pytest.mark.parametrize("number", range(len(VARIED)))
def test_simulated_means_lie_within_four_standard_errors_of_the_exact_moments(
    number: int, simulated: list[Simulation]
) -> None:
    curves = exact(Problem(epochs=10, milestones=(6,), shift=0.02), [VARIED[number]])[0]
    for name in QUANTITIES:
        gap = np.abs(getattr(simulated[number].mean, name) - getattr(curves, name))
        assert (gap <= 4 * getattr(simulated[number].error, name) + 1e-9).all(), name


def test_times_are_the_first_epoch_of_a_run_and_the_last_crossing_of_a_curve() -> None:
    assert settling_epoch(np.array([5.0, 1.0, 1.2, 1.1, 1.0])) == 3
    assert settling_epoch(np.ones(4)) == 0
    risk = np.array([[3.0, 3.0, 0.5], [1.0, 3.0, 2.0], [2.0, 3.0, 0.1]], np.float32)
    curves = Curves(*[np.zeros(3)] * len(QUANTITIES))
    assert Simulation(curves, curves, risk).times(1.0) == [0, 1, 1]
    assert Simulation(curves, curves, risk[:, 1:2]).times(1.0) == [np.inf] * 3


# The mean of the second one's peers would converge, their differences do not.
@pytest.mark.parametrize(("peers", "scale", "decay"), [(3, 30.0, 0.98), (2, 12.0, 0.0)])
def test_a_scheme_that_diverges_is_named(peers: int, scale: float, decay: float) -> None:
    with pytest.raises(ConfigError, match=r"heavy diverges: .* Lower convergence\.lambda"):
        exact(Problem(peers=peers), [DKEL, replace(DKEL, label="heavy", scale=scale, decay=decay)])
