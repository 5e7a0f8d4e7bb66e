"""How a teacher is drawn, initialised and updated, and the presets of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from dkel_lightning.schedules import Clock, at_time, ema_rate, length_in_batches, time_of
from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.keys import (
    RESUMABLE,
    Follows,
    ShareOfRun,
    apart,
    choice,
    either,
    epochs,
    number,
    registered,
    schedule,
    several,
    switch,
    text,
    whole,
)
from dkel_lightning.settings.needs import Needs

TRAININGS: Mapping[str, str] = {
    "plain": "baseline",
    "early_stopped": "baseline",
    "soteacher": "soteacher",
    "sftn": "sftn",
}
"""The method that trains a teacher of its own before its student, by the name of the training."""
EARLY = 150 / 240
"""Share of its training after which a teacher is stopped early. Source: reviews of SoTeacher."""
DTYPES = ("float32", "bfloat16", "float16")
CONSTANT, DEVIATION = number("", -1000, 1000), number("", 0, 1000, above=True)
OF_ITS_OWN = ("backbone", "pretrained", "image_size", "mean", "std", "init_student_from_branches")
"""Settings of a teacher that is a network of its own."""


@dataclass(frozen=True)
class OwnNetwork(Settings):
    """Of a teacher that is a network of its own: whose weights, and what images it takes."""

    pretrained: Annotated[
        bool, switch("Of a teacher of its own from a library: fetch weights that know the data's classes.")
    ] = False
    image_size: Annotated[
        int | None, whole("Side of the images that a teacher of its own takes, in pixels; null: the data's.", 1, 1024)
    ] = None
    mean: Annotated[
        tuple[float, ...] | None,
        several("Channel means of its normalisation; null: the data's, with pretrained=true its own.", CONSTANT),
    ] = None
    std: Annotated[tuple[float, ...] | None, several("Channel deviations, likewise.", DEVIATION)] = None
    dtype: Annotated[str, choice("Type in which a frozen teacher of its own computes.", *DTYPES)] = "float32"

    def contradictions(self) -> Iterator[str]:
        """Say it of mean and std."""
        yield from apart(self.node, self.mean, self.std)

    @property
    def sees_otherwise(self) -> bool:
        """Whether the images of the data are converted for it."""
        return self.image_size is not None or self.mean is not None or self.dtype != "float32"


@dataclass(frozen=True)
class ExtraTeacher(OwnNetwork, node="teacher.extra"):
    """A frozen teacher from elsewhere beside the peers of any method, as one more voice: `weight * KD(z_i, t; T)`."""

    backbone: Annotated[
        str | None, registered("Network of a frozen teacher beside the peers: what backbone= takes; null: none.")
    ] = None
    weights: Annotated[str | None, text("File of its weights: a checkpoint or a state_dict."), RESUMABLE] = None
    weight: Annotated[
        float, number("Weight of its distillation to each peer, at the method's temperature.", 0, 1e6)
    ] = 1.0

    def mistakes(self) -> Iterator[str]:
        """Say what is missing for it to teach."""
        given = self.weights is not None or self.pretrained
        if self.backbone is not None and not given:
            yield (
                "teacher.extra.backbone is a teacher that was trained elsewhere: give teacher.extra.weights, or "
                "teacher.extra.pretrained=true."
            )
        if self.backbone is None and given:
            yield "teacher.extra has weights and no network: give teacher.extra.backbone."


@dataclass(frozen=True)
class TeacherSettings(OwnNetwork, node="teacher"):
    """How a teacher is drawn, initialised and updated.

    The rules of the first updates: `keep`, a constant rate, so that its own start fades slowly; `mean_teacher`, an even
    average of the student's history; `copy`, the first update makes it its student (the released behaviour). It learns
    by `ema`; by `gradient`, from the labels itself and never from the student; or is `frozen`. Its weights replace draw
    and initialisation.
    """

    exclusive = ("decay", "decay_share")

    dtype: Annotated[
        str,
        choice(
            "Type in which a frozen teacher of its own computes, or (bfloat16) one that follows, in training.", *DTYPES
        ),
    ] = "float32"
    draw: Annotated[
        str, choice("First weights of the teacher: a draw of its own, or the student's.", "independent", "student")
    ] = "independent"
    start: Annotated[str, choice("Rule of the first EMA updates.", "keep", "mean_teacher", "copy")] = "keep"
    init_steps: Annotated[
        int | str,
        either(
            whole("Mini-batches of plain SGD on the teacher before training, or epochs of them.", 0, 1_000_000),
            epochs("", 1000),
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
        schedule("EMA time constant as a share of the run, or {from share: constant}.", 1e-9, 1e9),
        Follows("protocol.ema.decay_share"),
        ShareOfRun("teacher.decay"),
    ] = None
    batchnorm: Annotated[str, choice("Running statistics of the teacher.", "own", "copy", "ema")] = "own"
    update: Annotated[str, choice("How the teacher learns.", "ema", "gradient", "frozen", "none")] = "ema"
    backbone: Annotated[
        str | None, registered("Network of a teacher of its own (kd): what backbone= takes; null: the student's.")
    ] = None
    weights: Annotated[
        str | None,
        text("File of its first weights: a checkpoint or a state_dict; null: drawn, or (kd) trained first."),
        RESUMABLE,
    ] = None
    training: Annotated[str, choice("How a teacher of its own is trained first.", *TRAININGS)] = "plain"
    training_epochs: Annotated[
        int | None,
        whole("Length of that training in epochs; null: as the run's, of early_stopped 5/8 of it.", 1, 1_000_000),
    ] = None
    init_student_from_branches: Annotated[
        bool, switch("Start the student with the blocks of its sftn teacher's first branch.")
    ] = False

    def contradictions(self) -> Iterator[str]:
        """Say it of its type and of how it learns."""
        yield from super().contradictions()
        if self.dtype != "float32" and self.update == "gradient":
            yield f"teacher.dtype={self.dtype} is for a teacher that does not learn: add teacher=frozen."
        if self.dtype == "float16" and self.update == "ema":
            yield "teacher.dtype=float16 is for a frozen teacher: set it to bfloat16."
        if self.update == "none":
            yield "teacher.update is none, and a teacher learns by ema, by gradient, or is frozen."

    def rate(self, clock: Clock) -> float:
        """Give the EMA rate a at this moment, before the start rule."""
        if self.decay_share is not None:
            share = at_time(self.decay_share, clock.step / clock.steps if clock.steps else 0.0)
            return ema_rate(clock.share_in_steps(share, "teacher.decay_share"))
        assert self.decay is not None
        return at_time(self.decay, time_of(self.decay, clock, "teacher.decay"))

    def batches_of_initialisation(self, batches_per_epoch: float) -> int:
        """Give the length of the initialisation in mini-batches."""
        return length_in_batches(self.init_steps, batches_per_epoch, "teacher.init_steps")


def values_of(setting: float | Mapping[float, float] | None) -> list[float]:
    """List the values of a number or schedule; none of None."""
    if setting is None:
        return []
    return list(setting.values()) if isinstance(setting, Mapping) else [setting]


def teacher_mistakes(method: str, needs: Needs, teacher: Mapping[str, Any]) -> Iterator[str]:
    """Say which settings of a teacher contradict what the method needs, with their cure."""
    if teacher["update"] == "none":
        if needs.teacher == "required":
            cure = "frozen" if needs.foreign_teacher else "independent, copy or follow"
            yield f"teacher=none, but {method} needs a teacher: choose teacher={cure}."
        return
    if not needs.foreign_teacher:
        if teacher["update"] != "ema" and teacher.get("dtype", "float32") != "float32":
            yield (
                f"teacher.dtype={teacher['dtype']} is of a teacher that follows, or of a frozen one of its own (kd), "
                f"and that of {method} is neither: leave it out."
            )
        for key in OF_ITS_OWN:
            default = getattr(TeacherSettings, key)
            if teacher.get(key, default) != default:
                yield f"teacher.{key} is set, but the teacher of {method} has the student's form: leave it out."
        return
    its_own = f"but the teacher of {method} is a network of its own"
    if teacher["update"] == "ema":
        yield f"teacher.update is ema, {its_own}: set teacher.update to frozen or gradient."
    if teacher["update"] == "frozen" and teacher.get("init_steps"):
        yield f"The teacher of {method} is trained beforehand: set teacher.init_steps to 0."
    if teacher.get("draw") == "student":
        yield f"teacher.draw is student, {its_own}: set teacher.draw to independent."


@dataclass(frozen=True)
class TeacherPreset:
    """What is chosen under a name.

    Attributes:
        meaning: a sentence.
        settings: differences from the defaults of TeacherSettings; None where there is no teacher.
    """

    meaning: str
    settings: Mapping[str, Any] | None = field(default_factory=dict)


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
    "gradient": TeacherPreset("Learns from the labels by itself, never from the student.", {"update": "gradient"}),
    "independent": TeacherPreset(
        "Drawn on its own, briefly initialised, its start fades slowly (DKEL as its abstract describes it)."
    ),
    "mean_teacher": TeacherPreset(
        "A copy of the student whose first updates average its history evenly (Mean Teacher).",
        {"draw": "student", "start": "mean_teacher", "init_steps": 0},
    ),
    "online": TeacherPreset(
        "Learns from the labels by itself, from the first step of its student on.",
        {"update": "gradient", "init_steps": 0},
    ),
    "passive": TeacherPreset(
        "Drawn on its own, and averaged with its statistics: it is passed no batch where no method reads it.",
        {"batchnorm": "ema"},
    ),
    "none": TeacherPreset("No teacher; for methods that can do without.", None),
}
