"""Collapse by outcome: closed forms of the escape, and the table of stuck runs."""

from __future__ import annotations

import math

import pytest

from dkel_lightning.studies.collapse import simulate
from dkel_lightning.studies.convergence import Scheme


def test_the_escape_factor_is_that_of_the_simulated_landscape() -> None:
    # A start so near to the saddle that the run stays linear: it leaves at 0.05 after ln(ratio) / ln(factor) steps.
    steps = {}
    for spread in (1e-4, 1e-6):
        scheme = scheme_of(1.0, start="copy")
        steps[spread] = simulate(scheme, 4001, 0, spread=spread, noise=0.0, steps=1200).median_exit
    assert steps[1e-6] - steps[1e-4] == pytest.approx(math.log(100) / math.log(1.0235), abs=2)


TABLE = {
    (1.0, 0.0, "copy"): (0.0, 148),
    (1.0, 0.0, "own"): (0.0, 175),
    (1.0, 0.0, "20"): (0.0, 141),
    (1.0, 0.0, "100"): (0.0, 26),
    (3.0, 0.0, "copy"): (0.113, 388),
    (3.0, 0.0, "own"): (0.188, 442),
    (3.0, 0.0, "20"): (0.070, 328),
    (3.0, 0.0, "100"): (0.001, 11),
    (3.0, 0.5, "copy"): (0.0, 106),
    (3.0, 0.5, "own"): (0.0, 116),
    (3.0, 0.5, "20"): (0.0, 95),
    (3.0, 0.5, "100"): (0.0, 12),
}


def scheme_of(weight: float = 3.0, k: float = 0.0, start: str = "own") -> Scheme:
    if start == "copy":
        return Scheme(start, scale=weight, k=k, start="copy", draw="student")
    return Scheme(start, scale=weight, k=k, init_steps=0 if start == "own" else int(start))


@pytest.mark.parametrize("cell", list(TABLE))
def test_the_table_of_stuck_runs_and_median_exits(cell: tuple[float, float, str]) -> None:
    runs = 4000
    share, exit_step = TABLE[cell]
    found = simulate(scheme_of(*cell), runs, seed=0)
    error = math.sqrt(max(share * (1 - share), 0.0005) * (1 / runs + 1 / 10_000))
    assert found.share == pytest.approx(share, abs=4 * error)
    assert found.low <= found.share <= found.high
    assert found.median_exit == pytest.approx(exit_step, rel=0.05, abs=1.5)


def test_without_a_teachers_weight_nothing_is_stuck_and_the_start_of_the_teacher_changes_no_exit() -> None:
    cells = [simulate(scheme_of(0.0, 0.0, start), 2000, 0) for start in ("copy", "own", "20", "100")]
    assert [cell.stuck for cell in cells] == [0] * 4
    assert {cell.median_exit for cell in cells} == {cells[0].median_exit}
    assert cells[0].median_exit == pytest.approx(68, abs=2)
    # Why closeness must not define collapse: the harmless copy is the most homogenised.
    assert cells[0].homogenised > 0.3 > 0.2 > max(cell.homogenised for cell in cells[1:])
