"""Both landscapes: the tables of their analysis, and the closed forms beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dkel_lightning.errors import ConfigError, NonFiniteError
from dkel_lightning.studies import geometry, mirror, pairs
from dkel_lightning.studies.bowl import Bowl, all_directions, simulate_bowls
from dkel_lightning.studies.geometry import Geometry
from dkel_lightning.studies.geometry_settings import BowlSettings, GeometrySettings, MirrorSettings
from dkel_lightning.studies.pairs import Pull, Start
from dkel_lightning.studies.recursion import mode_matrix, relative_distance, relative_distance_floor
from tests.studies import closed_forms

CONSTANT = Pull(1.0)


@pytest.fixture(scope="module")
def found() -> Geometry:
    return geometry.simulate(GeometrySettings(bowl=BowlSettings(directions=8, max_steps=7000)))


def bowl(found: Geometry, curvature: float) -> Bowl:
    return next(each for each in found.bowls if each.curvature == curvature)


# ---------------------------------------------------------------------- the bowl


@pytest.mark.parametrize(
    ("start", "cosines", "last_helpful", "distances", "swept", "arrival"),
    [
        ("copy", (None, -1.00, -1.00), None, (0, 0.29, 0.40), 0.00, 227),
        ("own draw, copy", (None, -1.00, -1.00), 0, (0, 0.27, 0.38), 0.10, 221),
        ("own draw, mean_teacher", (0.65, 0.12, -1.00), 5, (1.31, 0.23, 0.34), 0.26, 211),
        ("own draw, keep", (0.65, 0.31, -0.86), 7, (2.57, 1.23, 0.53), 0.85, 254),
        ("own draw, 2 steps at 0.01 lr", (0.65, 0.31, -0.86), 7, (2.56, 1.23, 0.53), 0.85, 254),
        ("own draw, 2 steps at lr", (0.69, 0.38, -0.83), 8, (2.44, 1.13, 0.48), 0.77, 243),
        ("own draw, 20 steps at lr", (0.93, 0.84, -0.38), 16, (1.89, 0.66, 0.21), 0.30, 154),
    ],
)
def test_the_table_of_the_round_bowl(
    found: Geometry,
    start: str,
    cosines: tuple[float | None, ...],
    last_helpful: int | None,
    distances: tuple[float, ...],
    swept: float,
    arrival: int,
) -> None:
    row = bowl(found, 1.0).row(start, CONSTANT)
    assert [c is None for c in row.cosines] == [c is None for c in cosines]
    pairs = [(c, d) for c, d in zip(row.cosines, cosines, strict=True) if c is not None and d is not None]
    # The table is rounded to two decimals.
    assert [c for c, _ in pairs] == pytest.approx([d for _, d in pairs], abs=0.0055)
    assert row.distances == pytest.approx(distances, abs=0.0055)
    assert row.swept == pytest.approx(swept, abs=0.0055)
    assert (row.last_helpful, row.arrival) == (last_helpful, arrival)


def test_without_a_teacher_the_round_bowl_takes_59_steps(found: Geometry) -> None:
    alone = bowl(found, 1.0).alone
    assert (alone.start, alone.arrival, alone.last_helpful) == ("no teacher", 59, None)
    assert alone.arrival == math.ceil(math.log(0.05) / math.log(0.95))
    assert alone.swept == pytest.approx(0, abs=1e-15)


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
    assert bowl(found, 0.05).row(start, pull).loss_arrival == steps


def test_a_strong_constant_weight_on_an_own_draw_takes_over_6000_steps(found: Geometry) -> None:
    steps = bowl(found, 0.05).row("own draw, keep", Pull(3.0)).loss_arrival
    assert steps is not None
    assert steps > 6000


def test_a_copied_teacher_stays_on_its_students_line_and_pulls_straight_back(found: Geometry) -> None:
    pair = bowl(found, 1.0).pair("copy", CONSTANT)
    direction = pair.student[0] / 2
    for points in (pair.student, pair.teacher):
        aside = points - (points @ direction)[:, None] * direction
        assert np.abs(aside).max() < 1e-14
    cosines = pairs.alignment(pair)[2:200]
    assert cosines == pytest.approx(-1, abs=1e-9)
    assert pairs.swept_area(pair) == pytest.approx(0, abs=1e-14)


def test_each_direction_of_the_bowl_follows_its_own_matrix(found: Geometry) -> None:
    pair = bowl(found, 0.3).pair("own draw, keep", CONSTANT)
    for axis, curvature in enumerate((1.0, 0.3)):
        matrix = mode_matrix(curvature, 1.0, 0.05, 0.98, 1.0)
        first = np.array([pair.student[0, axis], pair.teacher[0, axis]])
        for steps in (1, 10, 200):
            expected = np.linalg.matrix_power(matrix, steps) @ first
            assert [pair.student[steps, axis], pair.teacher[steps, axis]] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("start", ["copy", "own draw, keep", "own draw, 20 steps at lr"])
def test_the_relative_distance_ends_at_the_floor_of_the_flattest_direction(found: Geometry, start: str) -> None:
    pair = bowl(found, 0.05).pair(start, CONSTANT)
    relative = pair.distance[5000] / np.linalg.norm(pair.teacher[5000])
    exact = relative_distance(mode_matrix(0.05, 1.0, 0.05, 0.98, 1.0))
    assert relative == pytest.approx(exact, rel=1e-6)
    # The rule of thumb is for a teacher much slower than this one.
    assert relative == pytest.approx(relative_distance_floor(0.05, 1.0), rel=0.4)


def test_the_first_cosine_of_an_own_draw(found: Geometry) -> None:
    for degrees in (30.0, 90.0, 170.0):
        assert closed_forms.first_alignment(degrees) == pytest.approx(math.sin(math.radians(degrees / 2)))
    angles = np.linspace(0.01, 359.99, 3600)
    assert np.mean([closed_forms.first_alignment(angle) for angle in angles]) == pytest.approx(2 / math.pi, abs=0.001)
    assert 2 / math.pi == pytest.approx(0.637, abs=0.0005)
    # What the released initialisation, two steps at a hundredth of the rate, adds to that mean.
    released = np.mean([closed_forms.first_alignment(angle, (1 - 0.0005) ** 2) for angle in angles])
    assert released == pytest.approx(0.640, abs=0.001)
    for steps in (2, 20):
        pair = bowl(found, 1.0).pair(f"own draw, {steps} steps at lr", CONSTANT)
        expected = closed_forms.first_alignment(90, 0.95**steps)
        assert pairs.alignment(pair)[0] == pytest.approx(expected, abs=1e-14)


def test_in_a_high_dimension_every_own_draw_pulls_at_45_degrees() -> None:
    student, teacher = np.random.default_rng(0).normal(size=(2, 200, 1000))
    pull = teacher - student
    cosines = -(pull * student).sum(-1) / np.linalg.norm(pull, axis=-1) / np.linalg.norm(student, axis=-1)
    assert cosines.mean() == pytest.approx(1 / math.sqrt(2), abs=0.005)


def test_the_area_between_two_known_paths() -> None:
    student = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    pair = pairs.Pair(Start("own", (0, 1), "keep"), CONSTANT, student, student + np.array([0.0, 1.5]))
    assert pairs.swept_area(pair) == pytest.approx(3.0)
    # A line that passes back over the same area counts twice.
    there_and_back = pairs.Pair(pair.start, CONSTANT, student[[0, 1, 0]], pair.teacher[[0, 1, 0]])
    assert pairs.swept_area(there_and_back) == pytest.approx(3.0)


def test_an_arrival_is_one_that_lasts() -> None:
    assert pairs.settled(np.array([3.0, 0.5, 2.0, 0.5, 0.4]), 1.0) == 3
    assert pairs.settled(np.array([0.5, 0.5]), 1.0) == 0
    assert pairs.settled(np.array([0.5, 2.0]), 1.0) is None
    assert pairs.first_below(np.array([3.0, 0.5, 2.0]), 1.0) == 1
    assert pairs.first_below(np.array([3.0]), 1.0) is None


# ---------------------------------------------------------------------- all directions


def test_the_draw_around_the_circle_holds_the_one_that_is_drawn() -> None:
    settings = GeometrySettings(
        bowl=BowlSettings(curvatures=(1.0, 0.3), directions=1, teacher_angle=0.0, max_steps=3000)
    )
    bowls = simulate_bowls(settings.bowl, settings.lr, settings.decay)
    rows = all_directions(settings.bowl, settings.lr, settings.decay, bowls)
    assert len(rows) == 2 * 6 * 4
    for row in rows:
        each = bowls[row.curvature != 1.0]
        arrival, alone = each.row(row.start, row.pull).arrival, each.alone.arrival
        assert arrival is not None
        assert alone is not None
        assert row.median == arrival
        assert row.sooner == float(arrival < alone)


def test_in_a_round_bowl_an_untrained_draw_is_sooner_in_no_direction(found: Geometry) -> None:
    shares = {(row.start, row.pull): row.sooner for row in found.directions if row.curvature == 1.0}
    assert shares["own draw, keep", Pull(1.0)] == 0
    assert shares["own draw, mean_teacher", Pull(3.0, 40.0)] == 0
    # In a flat one it depends on the direction: some carry the student across what is flat.
    flat = {(row.start, row.pull): row.sooner for row in found.directions if row.curvature == 0.05}
    assert 0 < flat["own draw, mean_teacher", Pull(1.0, 40.0)] < 1
    assert len(found.directions) == 3 * 6 * 4


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
    rows = [row for row in found.mirror.rows if row.start == start]
    assert [row.weight for row in rows] == [0, 0.5, 1, 3]
    assert tuple(row.arrival for row in rows) == arrivals
    assert tuple(row.crossed for row in rows) == crossed


def test_without_weight_a_teacher_follows_at_its_own_pace_and_over_the_barrier(found: Geometry) -> None:
    passive = {row.start: row for row in found.mirror.rows if row.weight == 0}
    assert {start: row.teacher_arrival for start, row in passive.items()} == {
        "copy": 139,
        "untrained, mirror branch": 164,
        "trained, same branch": 0,
        "trained, mirror branch": 0,
    }
    over = passive["trained, mirror branch"]
    assert over.teacher_first == 0
    # 0.5 is the loss at the saddle.
    assert over.teacher_peak == pytest.approx(0.50, abs=0.001)
    assert over.peak_step == 47


def test_the_gradient_between_the_optima_is_that_of_the_loss() -> None:
    points = np.random.default_rng(0).normal(size=(20, 2))
    for axis in range(2):
        step = np.zeros(2)
        step[axis] = 1e-6
        slope = (mirror.mirror_loss(points + step) - mirror.mirror_loss(points - step)) / 2e-6
        assert mirror.mirror_gradient(points)[:, axis] == pytest.approx(slope, abs=1e-6)
    assert mirror.mirror_loss(np.array([[2.0, 0.5], [-2.0, -0.5], [0.0, 0.0]])) == pytest.approx([0, 0, 0.5])


# ---------------------------------------------------------------------- settings


def test_settings_that_cannot_work_are_named_with_their_cure() -> None:
    with pytest.raises(ConfigError, match=r"geometry\.lr=1 diverges in a direction of curvature 1 with teacher weight"):
        geometry.simulate(GeometrySettings(lr=1.0))
    with pytest.raises(ConfigError, match=r"geometry\.mirror\.student is \[1\.0\]: give two coordinates"):
        MirrorSettings(student=(1.0,))
    with pytest.raises(
        ConfigError, match=r"geometry\.bowl\.weights must be a list, each a number above 0 and up to 1000, got"
    ):
        BowlSettings(weights=(0.0,))
    with pytest.raises(
        ConfigError, match=r"geometry\.bowl\.init_steps must be a list, each a whole number between 1 and 100000"
    ):
        BowlSettings(init_steps=(1.5,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"geometry\.bowl\.max_steps is 10, below geometry\.bowl\.steps=150"):
        BowlSettings(max_steps=10)
    with pytest.raises(NonFiniteError, match=r"The student diverges \(copy, W = 0\): lower geometry\.lr=0\.05"):
        mirror.simulate_mirror(MirrorSettings(student=(30.0, 30.0)), lr=0.05, decay=0.98)


def test_a_decaying_weight() -> None:
    assert Pull(3.0, 40.0).over(3) == pytest.approx([3, 3 * math.exp(-1 / 40), 3 * math.exp(-2 / 40)])
    assert Pull(3.0, 40.0).label == "W = 3 exp(-t/40)"
    assert Pull(0.5).over(2) == pytest.approx([0.5, 0.5])
