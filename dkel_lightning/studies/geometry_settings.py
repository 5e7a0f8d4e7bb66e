"""Settings of the two points in a plane. Imports neither torch nor numpy: the command line reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from dkel_lightning.settings.declarations import Settings, number, several, whole

POSITIVE = number("", 0, 1000, above=True)
PLACE = number("", -1000, 1000)


@dataclass(frozen=True)
class BowlSettings(Settings, node="geometry.bowl"):
    """Two points in a bowl."""

    curvatures: Annotated[
        tuple[float, ...], several("Curvature of a bowl's second direction, one bowl each; the other is 1.", POSITIVE)
    ] = (1, 0.3, 0.05)
    weights: Annotated[tuple[float, ...], several("Weights of the teacher, each constant and decaying.", POSITIVE)] = (
        1,
        3,
    )
    weight_time: Annotated[float, number("Steps in which the decaying weight falls by e.", 0, 1000, above=True)] = 40
    radius: Annotated[float, number("Distance of both starts from the optimum.", 0, 1000, above=True)] = 2
    student_angle: Annotated[float, number("Direction of the student's start, in degrees.", -360, 360)] = 200
    teacher_angle: Annotated[float, number("Direction of the teacher's own draw, in degrees.", -360, 360)] = 110
    init_steps: Annotated[
        tuple[int, ...],
        several("Gradient steps on an own draw before training; the last is drawn.", whole("", 1, 100_000)),
    ] = (2, 20)
    init_lr_scale: Annotated[float, number("Their learning rate as a share of geometry.lr.", 0, 1000, above=True)] = 1
    directions: Annotated[int, whole("Directions in which the teacher is drawn for the table of all.", 1, 360)] = 24
    tolerance: Annotated[
        float, number("Share of the first distance at which the student has arrived.", 1e-9, 0.999)
    ] = 0.05
    loss_tolerance: Annotated[float, number("The same for its loss.", 1e-9, 0.999)] = 0.001
    steps: Annotated[int, whole("Steps that are drawn.", 1, 100_000)] = 150
    max_steps: Annotated[int, whole("Steps after which an arrival is no longer waited for.", 1, 100_000)] = 12_000
    chords: Annotated[
        tuple[int, ...], several("Steps at which a line joins student and teacher.", whole("", 0, 100_000), least=0)
    ] = (1, 5, 15, 40)

    def contradictions(self) -> Iterator[str]:
        """Say it of the steps."""
        if self.max_steps < self.steps:
            yield f"geometry.bowl.max_steps is {self.max_steps}, below geometry.bowl.steps={self.steps}: raise it."


@dataclass(frozen=True)
class MirrorSettings(Settings, node="geometry.mirror"):
    """Two points between two mirror optima."""

    student: Annotated[
        tuple[float, ...], several("First position of the student, between two mirror optima.", PLACE)
    ] = (0.3, 0.1)
    trained: Annotated[
        tuple[float, ...], several("A teacher at an optimum of the student's branch; mirrored, of the other.", PLACE)
    ] = (1, 1)
    untrained: Annotated[tuple[float, ...], several("A teacher in the mirror branch, at no optimum.", PLACE)] = (
        -0.2,
        -0.5,
    )
    weights: Annotated[tuple[float, ...], several("Weights of the teacher; 0 is added.", number("", 0, 1000))] = (
        0,
        0.5,
        1,
        3,
    )
    threshold: Annotated[float, number("Loss below which a network counts as trained.", 0, 1000, above=True)] = 0.01
    steps: Annotated[int, whole("Length of the simulation.", 1, 100_000)] = 600

    def contradictions(self) -> Iterator[str]:
        """Say which is no point of the plane."""
        for name in ("student", "trained", "untrained"):
            if len(getattr(self, name)) != 2:
                yield f"geometry.mirror.{name} is {list(getattr(self, name))}: give two coordinates."


@dataclass(frozen=True)
class GeometrySettings(Settings, node="geometry"):
    """Student and teacher as two points."""

    lr: Annotated[float, number("Learning rate of the student.", 0, 1000, above=True)] = 0.05
    decay: Annotated[float, number("EMA rate of the teacher.", 1e-9, 0.999999)] = 0.98
    bowl: BowlSettings = field(default_factory=BowlSettings)
    mirror: MirrorSettings = field(default_factory=MirrorSettings)
