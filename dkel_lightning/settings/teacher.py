"""How a teacher is drawn, initialised and updated, and the presets of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from dkel_lightning.errors import ConfigError
from dkel_lightning.schedules import Clock, at_time, ema_rate, time_of
from dkel_lightning.settings.declarations import (
    Follows,
    Setting,
    Settings,
    choice,
    either,
    number,
    schedule,
    switch,
    text,
    whole,
)

TRAININGS: Mapping[str, str] = {
    "plain": "baseline",
    "early_stopped": "baseline",
    "soteacher": "soteacher",
    "sftn": "sftn",
}
"""The method that trains a teacher before its student, by the name of the training."""
EARLY = 150 / 240
"""Share of its training after which a teacher is stopped early. Source: reviews of SoTeacher."""


EPOCHS = re.compile(r"(\d+(?:\.\d+)?) ?epochs?")


def _is_epochs(value: Any) -> bool:
    match = EPOCHS.fullmatch(value) if isinstance(value, str) else None
    return match is not None and float(match[1]) <= 1000


@dataclass(frozen=True)
class TeacherSettings(Settings, node="teacher", one_of=("decay", "decay_share")):
    """How a teacher is drawn, initialised and updated.

    `start` is the rule of the first EMA updates: `keep` has a constant rate, and the initial weights fade slowly;
    `mean_teacher` averages the student's history evenly; with `copy` the first update copies the student (as released).
    `update`: `ema` of the student; `gradient`, learns from the labels and never from the student; `frozen`. `weights`
    replaces draw and initialisation.
    """

    draw: Annotated[
        str, choice("Initial weights of the teacher: drawn independently, or the student's.", "independent", "student")
    ] = "independent"
    start: Annotated[str, choice("Rule of the first EMA updates.", "keep", "mean_teacher", "copy")] = "keep"
    init_steps: Annotated[
        int | str,
        either(
            whole("Mini-batches of plain SGD on the teacher before training, or epochs of them.", 0, 1_000_000),
            Setting("epochs as in 3epochs, at most 1000", "", _is_epochs),
        ),
    ] = 2
    init_lr_scale: Annotated[float, number("Their learning rate as a share of optimizer.lr.", 0, 1000)] = 0.01
    init_weight_decay: Annotated[float, number("Their weight decay.", 0, 1000)] = 5e-4
    decay: Annotated[
        float | Mapping[float, float] | None,
        schedule("EMA rate, or a schedule {from epoch, or share of the run: rate}.", 0, 1),
        Follows("protocol.ema.decay"),
    ] = 0.999
    decay_share: Annotated[
        float | Mapping[float, float] | None,
        schedule("EMA time constant as a share of the run, or {from epoch, or share of the run: constant}.", 1e-9, 1e9),
        Follows("protocol.ema.decay_share"),
    ] = None
    batchnorm: Annotated[str, choice("Running statistics of the teacher.", "own", "copy", "ema")] = "own"
    update: Annotated[str, choice("How the teacher learns.", "ema", "gradient", "frozen")] = "ema"
    backbone: Annotated[str | None, text("Backbone of a separate teacher (kd); null: the student's.")] = None
    pretrained: Annotated[
        bool, switch("Download the weights of a library's network; they must have the data's classes.")
    ] = False
    weights: Annotated[
        str | None,
        text("File of its initial weights, a checkpoint or a state_dict; null: drawn, or (kd) trained first."),
    ] = None
    training: Annotated[str, choice("How a separate teacher is trained before its student.", *TRAININGS)] = "plain"
    training_epochs: Annotated[
        int | None,
        whole("Length of that training in epochs; null: as the run's, of early_stopped 5/8 of it.", 1, 1_000_000),
    ] = None

    def rate(self, clock: Clock) -> float:
        """Return the EMA rate a at this moment, before the start rule."""
        if self.decay_share is not None:
            share = at_time(self.decay_share, time_of(self.decay_share, clock, "teacher.decay_share"))
            return ema_rate(clock.time_constant(share, "teacher.decay_share"))
        assert self.decay is not None
        return at_time(self.decay, time_of(self.decay, clock, "teacher.decay"))

    def batches_of_initialisation(self, batches_per_epoch: float) -> int:
        """Return the length of the initialisation in mini-batches."""
        match = EPOCHS.fullmatch(str(self.init_steps))
        if match is None:
            return int(self.init_steps)
        if not math.isfinite(batches_per_epoch):
            raise ConfigError(
                f"teacher.init_steps={self.init_steps}, but the training loader does not say how long an epoch is: "
                "give steps."
            )
        return round(float(match[1]) * batches_per_epoch)


@dataclass(frozen=True)
class TeacherPreset:
    """A named choice of teacher.

    Attributes:
        meaning: a sentence.
        settings: differences from the defaults of TeacherSettings, or `{"update": "none"}`.
    """

    meaning: str
    settings: Mapping[str, Any] = field(default_factory=dict)


TEACHERS: Mapping[str, TeacherPreset] = {
    "copy": TeacherPreset(
        "A copy of the student, initialised, then erased by the first update (DKEL as released).",
        {"draw": "student", "start": "copy"},
    ),
    "follow": TeacherPreset(
        "A copy of the student that follows it (PCL).", {"draw": "student", "start": "copy", "init_steps": 0}
    ),
    "frozen": TeacherPreset(
        "Never changes: trained beforehand or loaded (kd), or a fixed draw (other methods).",
        {"update": "frozen", "init_steps": 0},
    ),
    "gradient": TeacherPreset("Learns from the labels, never from the student.", {"update": "gradient"}),
    "independent": TeacherPreset(
        "Drawn on its own, briefly initialised, its start fades slowly (DKEL as its abstract describes it)."
    ),
    "mean_teacher": TeacherPreset(
        "A copy of the student; its first updates average the student's history evenly (Mean Teacher).",
        {"draw": "student", "start": "mean_teacher", "init_steps": 0},
    ),
    "online": TeacherPreset(
        "Learns from the labels, from the first step of its student on.",
        {"update": "gradient", "init_steps": 0},
    ),
    "passive": TeacherPreset(
        "Moving average of weights and BatchNorm statistics; no forward pass unless the method reads it.",
        {"batchnorm": "ema"},
    ),
    "none": TeacherPreset("No teacher; for methods that can do without.", {"update": "none"}),
}
