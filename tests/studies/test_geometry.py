"""Both landscapes: the tables of their analysis, and the closed forms beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dkel_lightning.errors import NonFiniteError
from dkel_lightning.studies import geometry, pairs
from dkel_lightning.studies.geometry import Geometry
from dkel_lightning.studies.pairs import Pull
from dkel_lightning.studies.recursion import mode_matrix, relative_distance
from dkel_lightning.studies.settings import GeometrySettings
from tests.studies import closed_forms

CONSTANT = Pull(1.0)


@pytest.fixture(scope="module")
def found() -> Geometry:
    return geometry.simulate(GeometrySettings())


# ---------------------------------------------------------------------- the bowl


@pytest.mark.parametrize(
    ("start", "cosines", "last_helpful", "distances", "arrival"),
    [
        ("copy", (math.nan, -1.00, -1.00), None, (0, 0.29, 0.40), 227),
        ("own draw, copy", (math.nan, -1.00, -1.00), 0, (0, 0.27, 0.38), 221),
        ("own draw, mean_teacher", (0.65, 0.12, -1.00), 5, (1.31, 0.23, 0.34), 211),
        ("own draw, keep", (0.65, 0.31, -0.86), 7, (2.57, 1.23, 0.53), 254),
        ("own draw, 2 steps at 0.01 lr", (0.65, 0.31, -0.86), 7, (2.56, 1.23, 0.53), 254),
        ("own draw, 2 steps at lr", (0.69, 0.38, -0.83), 8, (2.44, 1.13, 0.48), 243),
        ("own draw, 20 steps at lr", (0.93, 0.84, -0.38), 16, (1.89, 0.66, 0.21), 154),
    ],
)
def test_the_table_of_the_round_bowl(
    found: Geometry,
    start: str,
    cosines: tuple[float, ...],
    last_helpful: int | None,
    distances: tuple[float, ...],
    arrival: int,
) -> None:
    row = found.bowl_rows[1.0, start, CONSTANT]
    # The table is rounded to two decimals.
    assert [row[f"cosine_{n}"] for n in (1, 5, 20)] == pytest.approx(cosines, abs=0.0055, nan_ok=True)
    assert [row[f"distance_{n}"] for n in (1, 10, 50)] == pytest.approx(distances, abs=0.0055)
    assert (row["last_helpful_step"], row["steps_to_distance"]) == (last_helpful, arrival)


@pytest.mark.parametrize(
    ("start", "pull", "steps"),
    [
        ("no teacher", Pull(0.0), 377),
        ("copy", Pull(1.0), 1270),
        ("own draw, keep", Pull(1.0), 2084),
        ("copy", Pull(3.0), 3084),
        ("copy", Pull(3.0, 40.0), 436),
        ("own draw, keep", Pull(3.0, 40.0), 778),
    ],
)
def test_steps_to_a_thousandth_of_the_loss_in_a_flat_bowl(found: Geometry, start: str, pull: Pull, steps: int) -> None:
    assert found.bowl_rows[0.05, start, pull]["steps_to_loss"] == steps


def test_a_copied_teacher_stays_on_its_students_line_and_pulls_straight_back(found: Geometry) -> None:
    pair = found.bowls[1.0, "copy", CONSTANT]
    direction = pair.student[0] / 2
    for points in (pair.student, pair.teacher):
        aside = points - (points @ direction)[:, None] * direction
        assert np.abs(aside).max() < 1e-14
    cosines = pairs.alignment(pair)[2:200]
    assert cosines == pytest.approx(-1, abs=1e-9)


def test_each_direction_of_the_bowl_follows_its_own_matrix(found: Geometry) -> None:
    pair = found.bowls[0.3, "own draw, keep", CONSTANT]
    for axis, curvature in enumerate((1.0, 0.3)):
        matrix = mode_matrix(curvature, 1.0, 0.05, 0.98, 1.0)
        first = np.array([pair.student[0, axis], pair.teacher[0, axis]])
        for steps in (1, 10, 200):
            expected = np.linalg.matrix_power(matrix, steps) @ first
            assert [pair.student[steps, axis], pair.teacher[steps, axis]] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("start", ["copy", "own draw, keep", "own draw, 20 steps at lr"])
def test_the_relative_distance_ends_at_the_floor_of_the_flattest_direction(found: Geometry, start: str) -> None:
    pair = found.bowls[0.05, start, CONSTANT]
    relative = pair.distance[5000] / np.linalg.norm(pair.teacher[5000])
    exact = relative_distance(mode_matrix(0.05, 1.0, 0.05, 0.98, 1.0))
    assert relative == pytest.approx(exact, rel=1e-6)
    # The rule of thumb is for a teacher much slower than this one.
    assert relative == pytest.approx(closed_forms.relative_distance_floor(0.05, 1.0), rel=0.4)


# ---------------------------------------------------------------------- two mirror optima


@pytest.mark.parametrize(
    ("start", "arrivals", "crossed"),
    [
        ("copy", (50, 87, 142, 347), (False, False, False, False)),
        ("untrained, mirror branch", (50, 173, 193, 348), (False, False, True, True)),
        ("trained, same branch", (50, 37, 29, 13), (False, False, False, False)),
        ("trained, mirror branch", (50, 78, 60, 21), (False, True, True, True)),
    ],
)
def test_the_table_of_the_mirror_optima(
    found: Geometry, start: str, arrivals: tuple[int, ...], crossed: tuple[bool, ...]
) -> None:
    rows = [found.mirror_rows[start, weight] for weight in (0, 0.5, 1, 3)]
    assert tuple(row["student_steps"] for row in rows) == arrivals
    assert tuple(row["ends_in_other_branch"] for row in rows) == crossed


def test_without_weight_a_teacher_follows_at_its_own_pace_and_over_the_barrier(found: Geometry) -> None:
    passive = {start: row for (start, weight), row in found.mirror_rows.items() if weight == 0}
    assert {start: row["teacher_steps"] for start, row in passive.items()} == {
        "copy": 139,
        "untrained, mirror branch": 164,
        "trained, same branch": 0,
        "trained, mirror branch": 0,
    }
    over = passive["trained, mirror branch"]
    assert over["teacher_first_loss"] == 0
    # 0.5 is the loss at the saddle.
    assert over["teacher_peak_loss"] == pytest.approx(0.50, abs=0.001)
    assert over["teacher_peak_step"] == 47


def test_the_gradient_between_the_optima_is_that_of_the_loss() -> None:
    points = np.random.default_rng(0).normal(size=(20, 2))
    for axis in range(2):
        step = np.zeros(2)
        step[axis] = 1e-6
        slope = (geometry.mirror_loss(points + step) - geometry.mirror_loss(points - step)) / 2e-6
        assert geometry.mirror_gradient(points)[:, axis] == pytest.approx(slope, abs=1e-6)
    assert geometry.mirror_loss(np.array([[2.0, 0.5], [-2.0, -0.5], [0.0, 0.0]])) == pytest.approx([0, 0, 0.5])


def test_a_learning_rate_that_diverges_is_named() -> None:
    with pytest.raises(NonFiniteError, match=r"The student diverges \(copy, W = 1\): lower geometry\.lr=1\.9"):
        geometry.simulate_bowls(GeometrySettings(lr=1.9))
