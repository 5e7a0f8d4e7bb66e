"""Student and teacher as two points of a plane: in a bowl, and between two mirror optima.

Nothing is drawn at random and nothing is drawn as a picture here: the pairs are followed step by step (`recursion`
has the formula), and measured. The optimum of the bowl is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dkel_lightning.errors import ConfigError, NonFiniteError
from dkel_lightning.studies.recursion import Array, ema_rates, is_stable

NO_TEACHER = "no teacher"
COPY = "copy"
OWN = "own draw, keep"
RELEASED_STEPS, RELEASED_LR_SCALE = 2, 0.01
"""The initialisation of the released code: two steps at a hundredth of the learning rate."""
COSINES_AT = (1, 5, 20)
DISTANCES_AT = (1, 10, 50)


# ---------------------------------------------------------------------- settings


@dataclass(frozen=True)
class BowlSettings:
    """The bowl `L = (x^2 + h y^2) / 2`.

    Attributes:
        curvatures: h, one bowl each; the other curvature is 1.
        weights: total teacher weights W; each also as `W exp(-t / weight_time)`.
        weight_time: that time constant, in steps.
        radius: distance of the student's and of the drawn teacher's start from the optimum.
        student_angle: direction of the student's start, in degrees.
        teacher_angle: direction of the teacher's own draw, in degrees.
        init_steps: lengths of the initialisation of an own draw, in gradient steps; the last is drawn.
        init_lr_scale: their learning rate as a share of the student's.
        directions: directions of the teacher's draw, evenly around the circle, for the study of all of them.
        tolerance: the student has arrived when its distance stays below this share of its first.
        loss_tolerance: the same for its loss.
        steps: steps that are drawn.
        max_steps: steps after which an arrival is no longer waited for.
        chords: steps at which a line joins student and teacher.
    """

    curvatures: Sequence[float] = (1.0, 0.3, 0.05)
    weights: Sequence[float] = (1.0, 3.0)
    weight_time: float = 40.0
    radius: float = 2.0
    student_angle: float = 200.0
    teacher_angle: float = 110.0
    init_steps: Sequence[int] = (2, 20)
    init_lr_scale: float = 1.0
    directions: int = 24
    tolerance: float = 0.05
    loss_tolerance: float = 0.001
    steps: int = 150
    max_steps: int = 12_000
    chords: Sequence[int] = (1, 5, 15, 40)

    def __post_init__(self) -> None:
        _check_list("geometry.bowl.curvatures", self.curvatures, low=0, above=True)
        _check_list("geometry.bowl.weights", self.weights, low=0, above=True)
        _check_list("geometry.bowl.init_steps", self.init_steps, low=1, whole=True)
        _check_list("geometry.bowl.chords", self.chords, low=0, whole=True)
        if self.max_steps < self.steps:
            raise ConfigError(
                f"geometry.bowl.max_steps is {self.max_steps}, below geometry.bowl.steps={self.steps}: raise it."
            )


@dataclass(frozen=True)
class MirrorSettings:
    """The landscape `L = (u v - 1)^2 / 2`: two branches of optima, mirrored at the saddle 0.

    Attributes:
        student: where the student starts.
        trained: a teacher's start at an optimum in the student's branch; its mirror image lies in the other.
        untrained: a teacher's start in the other branch that is no optimum.
        weights: total teacher weights W; 0 is added where it is missing.
        threshold: loss below which a network counts as trained.
        steps: length of the simulation.
    """

    student: Sequence[float] = (0.3, 0.1)
    trained: Sequence[float] = (1.0, 1.0)
    untrained: Sequence[float] = (-0.2, -0.5)
    weights: Sequence[float] = (0.0, 0.5, 1.0, 3.0)
    threshold: float = 0.01
    steps: int = 600

    def __post_init__(self) -> None:
        for name in ("student", "trained", "untrained"):
            if len(getattr(self, name)) != 2:
                raise ConfigError(f"geometry.mirror.{name} is {list(getattr(self, name))}: give two coordinates.")
        _check_list("geometry.mirror.weights", self.weights, low=0)


@dataclass(frozen=True)
class Settings:
    """Both landscapes, and what they share: the learning rate of the student and the EMA rate of the teacher."""

    lr: float = 0.05
    decay: float = 0.98
    bowl: BowlSettings = field(default_factory=BowlSettings)
    mirror: MirrorSettings = field(default_factory=MirrorSettings)

    def __post_init__(self) -> None:
        for curvature in (1.0, *self.bowl.curvatures):
            for weight in (0.0, *self.bowl.weights):
                if not is_stable(curvature, weight, self.lr, self.decay):
                    raise ConfigError(
                        f"geometry.lr={self.lr:g} diverges in a direction of curvature {curvature:g} with teacher "
                        f"weight {weight:g}: lower it below about 2 / (curvature + weight)."
                    )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Read the node `geometry` of a configuration.

        Raises:
            ConfigError: values that do not fit together.
        """
        shared = {name: value for name, value in values.items() if name not in ("bowl", "mirror")}
        return cls(**shared, bowl=BowlSettings(**values["bowl"]), mirror=MirrorSettings(**values["mirror"]))


def _check_list(key: str, values: Sequence[float], *, low: float, above: bool = False, whole: bool = False) -> None:
    fits = all((value > low if above else value >= low) and (not whole or value == int(value)) for value in values)
    if not values or not fits or len(set(values)) < len(values):
        kind = "whole numbers" if whole else "numbers"
        bound = f"above {low:g}" if above else f"of at least {low:g}"
        raise ConfigError(f"{key} is {list(values)}: give {kind} {bound}, each once.")


# ---------------------------------------------------------------------- following a pair


@dataclass(frozen=True)
class Start:
    """How a teacher begins: where, and by which rule of the first EMA updates."""

    label: str
    teacher: tuple[float, float]
    rule: str


@dataclass(frozen=True)
class Pull:
    """The total teacher weight over time: constant, or decaying with `time` steps."""

    weight: float
    time: float | None = None

    @property
    def label(self) -> str:
        """Name it: `W = 1`, `W = 3 exp(-t/40)`."""
        return f"W = {self.weight:g}" + ("" if self.time is None else f" exp(-t/{self.time:g})")

    def over(self, steps: int) -> Array:
        """Give the weights at the steps 0 .. steps - 1: [steps]."""
        times = np.arange(steps)
        return np.full(steps, float(self.weight)) if self.time is None else self.weight * np.exp(-times / self.time)


@dataclass(frozen=True)
class Pair:
    """A student and its teacher, followed.

    Attributes:
        start: how the teacher began.
        pull: the teacher's weight.
        student: positions after 0, 1, ... steps: [steps + 1, 2].
        teacher: the same of the teacher.
    """

    start: Start
    pull: Pull
    student: Array
    teacher: Array

    @property
    def distance(self) -> Array:
        """Give |theta - s| at every step."""
        return _length(self.teacher - self.student)


Gradient = Callable[[Array], Array]


def walk(
    gradient: Gradient,
    student: Sequence[float],
    pairs: Sequence[tuple[Start, Pull]],
    steps: int,
    lr: float,
    decay: float,
) -> Iterator[tuple[Array, Array]]:
    """Give the positions of all students and teachers, [N, 2] each, after 0, 1, ... `steps` steps.

    `gradient` maps positions [N, 2] to gradients [N, 2].

    Raises:
        NonFiniteError: a pair has diverged.
    """
    rates = np.stack([ema_rates(start.rule, decay, steps) for start, _ in pairs], 1)[..., None]
    weights = np.stack([pull.over(steps) for _, pull in pairs], 1)[..., None]
    students = np.tile(np.asarray(student, dtype=np.float64), (len(pairs), 1))
    teachers = np.array([start.teacher for start, _ in pairs], dtype=np.float64)
    yield students, teachers
    with np.errstate(over="ignore", invalid="ignore"):
        for rate, weight in zip(rates, weights, strict=True):
            students = students - lr * (gradient(students) + weight * (students - teachers))
            teachers = rate * teachers + (1 - rate) * students
            yield students, teachers
    for (start, pull), end in zip(pairs, students, strict=True):
        if not np.isfinite(end).all():
            raise NonFiniteError(f"The student diverges ({start.label}, {pull.label}): lower geometry.lr={lr:g}.")


def follow(
    gradient: Gradient,
    student: Sequence[float],
    pairs: Sequence[tuple[Start, Pull]],
    steps: int,
    lr: float,
    decay: float,
) -> list[Pair]:
    """Follow all pairs side by side, see `walk`."""
    moments = list(walk(gradient, student, pairs, steps, lr, decay))
    students, teachers = (np.stack(points, 1) for points in zip(*moments, strict=True))
    return [Pair(*pair, *paths) for pair, paths in zip(pairs, zip(students, teachers, strict=True), strict=True)]


def settled(values: Array, bound: float) -> int | None:
    """Find the step from which all values lie below the bound; None if the last one does not."""
    outside = np.flatnonzero(values >= bound)
    step = int(outside[-1]) + 1 if outside.size else 0
    return step if step < len(values) else None


def first_below(values: Array, bound: float) -> int | None:
    """Find the first step at which a value lies below the bound; None if there is none."""
    found = np.flatnonzero(values < bound)
    return int(found[0]) if found.size else None


def _length(vectors: Array) -> Array:
    lengths: Array = np.linalg.norm(vectors, axis=-1)
    return lengths


# ---------------------------------------------------------------------- the bowl


@dataclass(frozen=True)
class BowlRow:
    """What is measured on one pair in one bowl.

    Attributes:
        cosines: cos between (theta - s) and (o - s) at the steps `COSINES_AT`; None where the two coincide.
        last_helpful: the last step after which the teacher lies less than 90 degrees off the way to the
            optimum; None if there is none.
        distances: |theta - s| at the steps `DISTANCES_AT`.
        swept: area over which the line between student and teacher passes.
        arrival: steps until the student's distance stays below the tolerance; None if not in max_steps.
        loss_arrival: the same for its loss.
    """

    curvature: float
    start: str
    pull: Pull
    cosines: tuple[float | None, ...]
    last_helpful: int | None
    distances: tuple[float, ...]
    swept: float
    arrival: int | None
    loss_arrival: int | None


@dataclass(frozen=True)
class Bowl:
    """One bowl: its pairs, and a row for each. The first pair has no teacher's weight."""

    curvature: float
    pairs: Sequence[Pair]
    rows: Sequence[BowlRow]

    def pair(self, start: str, pull: Pull) -> Pair:
        """Find the pair of a start and a weight."""
        return next(p for p in self.pairs if (p.start.label, p.pull) == (start, pull))

    def row(self, start: str, pull: Pull) -> BowlRow:
        """Find the row of a start and a weight."""
        return next(row for row in self.rows if (row.start, row.pull) == (start, pull))

    @property
    def alone(self) -> BowlRow:
        """The row without a teacher."""
        return self.rows[0]

    def loss(self, positions: Array) -> Array:
        """Give the loss at positions [..., 2]."""
        return bowl_loss(positions, self.curvature)


def bowl_loss(positions: Array, curvature: float) -> Array:
    """Give `(x^2 + h y^2) / 2` at positions [..., 2]."""
    losses: Array = 0.5 * (positions[..., 0] ** 2 + curvature * positions[..., 1] ** 2)
    return losses


def on_circle(radius: float, degrees: float) -> tuple[float, float]:
    """Give the point of the circle around the optimum in this direction."""
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def initialised_label(steps: int, lr_scale: float) -> str:
    """Name an own draw that is trained for some steps before."""
    rate = "lr" if lr_scale == 1 else f"{lr_scale:g} lr"
    return f"own draw, {steps} step{'s' * (steps != 1)} at {rate}"


def bowl_starts(settings: BowlSettings, curvature: float, lr: float) -> list[Start]:
    """Give the ways in which the teacher begins in this bowl."""
    student = on_circle(settings.radius, settings.student_angle)
    own = on_circle(settings.radius, settings.teacher_angle)

    def trained(steps: int, lr_scale: float) -> Start:
        kept = [(1 - lr_scale * lr * h) ** steps for h in (1.0, curvature)]
        return Start(initialised_label(steps, lr_scale), (own[0] * kept[0], own[1] * kept[1]), "keep")

    starts = [Start(COPY, student, "copy")]
    starts += [Start("own draw, copy", own, "copy"), Start("own draw, mean_teacher", own, "mean_teacher")]
    starts += [Start(OWN, own, "keep"), trained(RELEASED_STEPS, RELEASED_LR_SCALE)]
    return starts + [trained(steps, settings.init_lr_scale) for steps in settings.init_steps]


def pulls(settings: BowlSettings) -> list[Pull]:
    """Give every weight, constant and decaying."""
    return [Pull(weight, time) for weight in settings.weights for time in (None, settings.weight_time)]


def simulate_bowls(settings: Settings) -> list[Bowl]:
    """Follow every start under every weight, and the student alone, in every bowl; all of them side by side."""
    bowl = settings.bowl
    student = on_circle(bowl.radius, bowl.student_angle)
    alone = (Start(NO_TEACHER, student, "copy"), Pull(0.0))
    wanted = [
        [alone, *((start, pull) for start in bowl_starts(bowl, curvature, settings.lr) for pull in pulls(bowl))]
        for curvature in bowl.curvatures
    ]
    count = len(wanted[0])
    scale = _curvatures(bowl, count)
    flat = [pair for pairs in wanted for pair in pairs]
    pairs = follow(lambda x: x * scale, student, flat, bowl.max_steps, settings.lr, settings.decay)
    bowls = []
    for position, curvature in enumerate(bowl.curvatures):
        own = pairs[position * count : (position + 1) * count]
        bowls.append(Bowl(curvature, own, [_measured(pair, bowl, curvature) for pair in own]))
    return bowls


def _curvatures(settings: BowlSettings, count: int) -> Array:
    """Give the curvatures of both directions for `count` pairs in each bowl: [bowls x count, 2]."""
    return np.repeat([(1.0, curvature) for curvature in settings.curvatures], count, axis=0)


def _measured(pair: Pair, settings: BowlSettings, curvature: float) -> BowlRow:
    reach = _length(pair.student)
    losses = bowl_loss(pair.student, curvature)
    alone = pair.start.label == NO_TEACHER
    cosines = alignment(pair)
    helpful = np.flatnonzero(cosines > 0)
    seen = [float(cosines[step]) if step < len(cosines) else math.nan for step in COSINES_AT]
    return BowlRow(
        curvature=curvature,
        start=pair.start.label,
        pull=pair.pull,
        cosines=tuple(None if alone or math.isnan(value) else value for value in seen),
        last_helpful=int(helpful[-1]) if helpful.size and not alone else None,
        distances=tuple(float(pair.distance[min(step, len(reach) - 1)]) for step in DISTANCES_AT),
        swept=swept_area(pair),
        arrival=settled(reach, settings.tolerance * reach[0]),
        loss_arrival=settled(losses, settings.loss_tolerance * losses[0]),
    )


def alignment(pair: Pair) -> Array:
    """Give cos between the teacher's pull (theta - s) and the way to the optimum (-s): nan where they coincide."""
    pull = pair.teacher - pair.student
    length = _length(pull)
    # Rounding leaves a distance of some 1e-16 where copy and student are the same.
    apart = length > 1e-12
    scale = np.where(apart, length * _length(pair.student), 1.0)
    return np.where(apart, -(pull * pair.student).sum(-1) / scale, np.nan)


def first_alignment(degrees: float, shrunk: float = 1.0) -> float:
    """Give the cosine before the first step for a teacher drawn `degrees` away at the same radius.

    `shrunk` is the share of that radius which is left after its initialisation. For 1 it is sin(angle / 2).
    """
    cosine = math.cos(math.radians(degrees))
    return (1 - shrunk * cosine) / math.sqrt(1 + shrunk**2 - 2 * shrunk * cosine)


def swept_area(pair: Pair) -> float:
    """Add up the areas over which the line between student and teacher passes, from the start on."""
    s, t = pair.student, pair.teacher
    first, second = _triangles(s[:-1], s[1:], t[1:]), _triangles(s[:-1], t[1:], t[:-1])
    return float(np.abs(first).sum() + np.abs(second).sum())


def _triangles(a: Array, b: Array, c: Array) -> Array:
    u, v = b - a, c - a
    areas: Array = 0.5 * (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
    return areas


@dataclass(frozen=True)
class DirectionRow:
    """How long it takes over all directions in which a teacher can be drawn.

    Attributes:
        median: median of the steps until the student's distance stays below the tolerance; infinite if it is later
            than max_steps.
        sooner: share of the directions in which the student arrives sooner than without a teacher.
    """

    curvature: float
    start: str
    pull: Pull
    median: float
    sooner: float


def all_directions(settings: Settings, bowls: Sequence[Bowl]) -> list[DirectionRow]:
    """Draw the teacher in every direction: what one direction shows may be its luck."""
    bowl = settings.bowl
    around = [replace(bowl, teacher_angle=360 * i / bowl.directions) for i in range(bowl.directions)]
    # Bowl by bowl, start by start, weight by weight, and within these the directions.
    wanted = [
        (start, pull)
        for each in bowls
        for same in zip(*(bowl_starts(one, each.curvature, settings.lr)[1:] for one in around), strict=True)
        for pull in pulls(bowl)
        for start in same
    ]
    scale = _curvatures(bowl, len(wanted) // len(bowls))
    arrivals = np.zeros(len(wanted))
    student = on_circle(bowl.radius, bowl.student_angle)
    moments = walk(lambda x: x * scale, student, wanted, bowl.max_steps, settings.lr, settings.decay)
    for step, (students, _) in enumerate(moments):
        arrivals[_length(students) >= bowl.tolerance * bowl.radius] = step + 1
    arrivals[arrivals > bowl.max_steps] = np.inf
    rows = []
    of_bowl = [each for each in bowls for _ in range(len(wanted) // len(bowls) // bowl.directions)]
    for each, (start, pull), steps in zip(
        of_bowl, wanted[:: bowl.directions], arrivals.reshape(-1, bowl.directions), strict=True
    ):
        alone = math.inf if each.alone.arrival is None else each.alone.arrival
        rows.append(
            DirectionRow(each.curvature, start.label, pull, float(np.median(steps)), float((steps < alone).mean()))
        )
    return rows


# ---------------------------------------------------------------------- two mirror optima


@dataclass(frozen=True)
class MirrorRow:
    """What is measured on one pair between the mirror optima.

    Attributes:
        arrival: steps until the student's loss stays below the threshold; None if not in the simulation.
        teacher_arrival: the first step at which the teacher's loss is below it.
        teacher_first: loss of the teacher before the first step.
        teacher_peak: largest loss of the teacher, and the step at which it has it.
        crossed: whether the student ends in the branch that it did not start in.
    """

    start: str
    weight: float
    arrival: int | None
    teacher_arrival: int | None
    teacher_first: float
    teacher_peak: float
    peak_step: int
    crossed: bool


@dataclass(frozen=True)
class Mirror:
    """The landscape of two mirror optima: its pairs, and a row for each."""

    pairs: Sequence[Pair]
    rows: Sequence[MirrorRow]

    def row(self, start: str, weight: float) -> MirrorRow:
        """Find the row of a start and a weight."""
        return next(row for row in self.rows if (row.start, row.weight) == (start, weight))

    @property
    def starts(self) -> list[str]:
        """The starts, in order."""
        return list(dict.fromkeys(row.start for row in self.rows))

    @property
    def weights(self) -> list[float]:
        """The weights, rising; the first is 0."""
        return sorted({row.weight for row in self.rows})


UNTRAINED_MIRROR = "untrained, mirror branch"
TRAINED_SAME = "trained, same branch"
TRAINED_MIRROR = "trained, mirror branch"


def mirror_loss(positions: Array) -> Array:
    """Give `(u v - 1)^2 / 2` at positions [..., 2]."""
    losses: Array = 0.5 * (positions[..., 0] * positions[..., 1] - 1) ** 2
    return losses


def mirror_gradient(positions: Array) -> Array:
    """Give its gradient, `(u v - 1) (v, u)`."""
    gradients: Array = (positions[..., :1] * positions[..., 1:] - 1) * positions[..., ::-1]
    return gradients


def simulate_mirror(settings: Settings) -> Mirror:
    """Follow every start under every weight, 0 among them."""
    mirror = settings.mirror
    student, trained, untrained = (
        (float(point[0]), float(point[1])) for point in (mirror.student, mirror.trained, mirror.untrained)
    )
    starts = [
        Start(COPY, student, "copy"),
        Start(UNTRAINED_MIRROR, untrained, "keep"),
        Start(TRAINED_SAME, trained, "keep"),
        Start(TRAINED_MIRROR, (-trained[0], -trained[1]), "keep"),
    ]
    wanted = [(start, Pull(weight)) for start in starts for weight in sorted({0.0, *mirror.weights})]
    pairs = follow(mirror_gradient, student, wanted, mirror.steps, settings.lr, settings.decay)
    return Mirror(pairs, [_between(pair, mirror.threshold) for pair in pairs])


def _between(pair: Pair, threshold: float) -> MirrorRow:
    losses = mirror_loss(pair.teacher)
    return MirrorRow(
        start=pair.start.label,
        weight=pair.pull.weight,
        arrival=settled(mirror_loss(pair.student), threshold),
        teacher_arrival=first_below(losses, threshold),
        teacher_first=float(losses[0]),
        teacher_peak=float(losses.max()),
        peak_step=int(losses.argmax()),
        crossed=bool(pair.student[0].sum() * pair.student[-1].sum() < 0),
    )


# ---------------------------------------------------------------------- both


@dataclass(frozen=True)
class Geometry:
    """Both landscapes, simulated and measured."""

    settings: Settings
    bowls: Sequence[Bowl]
    directions: Sequence[DirectionRow]
    mirror: Mirror


def simulate(settings: Settings) -> Geometry:
    """Simulate all bowls and the mirror optima.

    Raises:
        NonFiniteError: a pair has diverged.
    """
    bowls = simulate_bowls(settings)
    return Geometry(settings, bowls, all_directions(settings, bowls), simulate_mirror(settings))
