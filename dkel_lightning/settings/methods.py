"""The shipped methods as far as they can be told without torch: settings, needs, and how their peers are arranged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from dkel_lightning.settings.backbone import BackboneSettings
from dkel_lightning.settings.declarations import Settings, node_of
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.distils import Detach, Distils, LabelsWeight, Temperature, Weight
from dkel_lightning.settings.keys import REQUIRED, choice, either, names, number, registered, text, whole
from dkel_lightning.settings.needs import Needs
from dkel_lightning.settings.teacher import TEACHERS
from dkel_lightning.settings.weights import EnsembleTerm, RampUp
from dkel_lightning.settings.with_teachers import (
    ConsistentSettings,
    DIHSettings,
    EKDSettings,
    HeadsSettings,
    IAKDSettings,
    KDPMSettings,
    SFTNSettings,
    SoTeacherSettings,
)


@dataclass(frozen=True)
class Arrangement(Settings, node="method"):
    """How the peers stand to each other; every method has these settings."""

    name: Annotated[str, registered("Method.")]
    peers: Annotated[int | tuple[str, ...], either(whole("Peers, or the backbone of each.", 1, 64), names(""))] = 3
    sharing: Annotated[str, choice("What peers given as a number share.", "trunk", "nothing")] = "trunk"
    views: Annotated[
        str,
        choice(
            "Augmented views of an image: one for each peer, one for all, or also one for each teacher.",
            *("per_peer", "shared", "per_peer_and_teacher"),
        ),
    ] = "per_peer"
    classifiers: Annotated[str, choice("How the branches' classifiers start.", "own", "equal", "released")] = "own"


def usual_arrangement() -> dict[str, Any]:
    """Give the defaults of what every method has; a method of the user's own may leave it out."""
    return {key: value for key, value in node_of(Arrangement).items() if value != REQUIRED}


def unmet_needs(method: str, needs: Needs, peers: int, trunk: bool = True, views: str = "per_peer") -> Iterator[str]:
    """Say what of its peers, of a trunk that they share and of their views a method does without, with the cure."""
    if peers < (least := needs.minimum_peers):
        yield f"{method} needs at least {least} peers, got {peers}: raise method.peers, or choose method=baseline."
    if (most := needs.maximum_peers) is not None and peers > most:
        yield f"{method} is of {most} peer: set method.peers to {most}, not {peers}."
    if needs.trunk and not trunk:
        yield f"{method} works on a trunk that its peers share: give method.peers as a number and method.sharing=trunk."
    if views == "per_peer_and_teacher" and not needs.teacher_views:
        whose = next(name for name, preset in PRESETS.items() if preset.needs.teacher_views)
        yield f"method.views=per_peer_and_teacher belongs to {whose}: choose per_peer or shared."


@dataclass(frozen=True)
class NoSettings(Settings, node="method"):
    """The settings of a method that has none."""


@dataclass(frozen=True)
class PCLSettings(Distils):
    """Settings of PCL."""

    rampup: RampUp = field(default_factory=RampUp)


@dataclass(frozen=True)
class DKELSettings(PCLSettings):
    """Settings of DKEL: those of PCL and the decaying ensemble of teachers."""

    ensemble: EnsembleTerm = field(default_factory=EnsembleTerm)


@dataclass(frozen=True)
class KDSettings(Distils):
    """Settings of KD."""

    ce_weight: LabelsWeight = 0.1
    weight: Weight = 0.9
    temperature: Temperature = 4.0


@dataclass(frozen=True)
class OnlineCheckpointsSettings(KDSettings):
    """Settings of online_checkpoints: those of KD, by default without labels."""

    ce_weight: LabelsWeight = 0.0
    weight: Weight = 1.0
    checkpoints: Annotated[
        str | None, text("Folder of checkpoints of a frozen teacher, *step=N.ckpt; null: it learns beside its student.")
    ] = None


@dataclass(frozen=True)
class DMLSettings(Distils):
    """Settings of DML, which has no ramp-up. `pairwise` is the mean divergence to each other peer."""

    temperature: Temperature = 1.0
    weight: Weight = 1.0
    targets: Annotated[
        str, choice("The other peers as targets (DML): each, or their mean logits.", "pairwise", "mean_logits")
    ] = "pairwise"
    detach: Detach = True


@dataclass(frozen=True)
class KDCLSettings(Distils):
    """Settings of KDCL, which has no ramp-up."""

    weight: Weight = 1.0
    target: Annotated[str, choice("The one target of all peers (KDCL).", "naive", "linear", "min_logit", "mean")] = (
        "min_logit"
    )


@dataclass(frozen=True)
class CLILRSettings(Distils):
    """Settings of CL-ILR, whose ramp-up is of length 0, that is absent, by default."""

    temperature: Temperature = 2.0
    beta: Annotated[
        float | None, number("Weight of the labels, against 1 - beta of the other heads; null: both 1 (CL-ILR).", 0, 1)
    ] = 0.5
    detach: Detach = True
    rampup: RampUp = field(default_factory=lambda: RampUp(epochs=0))


@dataclass(frozen=True)
class ONESettings(Distils):
    """Settings of ONE; not detached, what is taught also trains the gate."""

    rampup: RampUp = field(default_factory=RampUp)
    detach: Detach = True


@dataclass(frozen=True)
class OKDDipSettings(Distils):
    """Settings of OKDDip; the ramp-up is of both distillations."""

    rampup: RampUp = field(default_factory=RampUp)
    attention_divisor: Annotated[
        int, whole("Queries and keys are this many times narrower than the features.", 1, 1024)
    ] = 8


@dataclass(frozen=True)
class FFLSettings(Distils):
    """Settings of FFL; the ramp-up is of all that is distilled."""

    rampup: RampUp = field(default_factory=RampUp)


@dataclass(frozen=True)
class MeanTeacherSettings(Settings, node="method"):
    """Settings of Mean Teacher.

    `mse` is the squared difference of the softmaxes summed over classes, `kl` is KL(t || z). The scale of the ramp-up
    is the weight of either.
    """

    consistency: Annotated[str, choice("Distance of student and teacher (Mean Teacher).", "mse", "kl")] = "mse"
    rampup: RampUp = field(default_factory=lambda: RampUp(epochs=5))


@dataclass(frozen=True)
class MethodPreset:
    """A method under a name: its settings and needs, and what differs from the defaults.

    Attributes:
        meaning: a sentence.
        Settings: frozen dataclass of primitives.
        needs: what it needs.
        settings: differences from the defaults of `Settings`; a ramp-up or ensemble that is named here keeps its length
            whatever the experiment.
        teacher: name of the teacher's preset, or differences from the defaults of `TeacherSettings`; by default
            `independent`, or `none` where the method reads none.
        arrangement: differences from the defaults of `Arrangement`.
        views_per_pass: how views pass the trunk, see `BackboneSettings`.
    """

    meaning: str
    Settings: type[Any]
    needs: Needs = field(default_factory=Needs)
    settings: Mapping[str, Any] = field(default_factory=dict)
    teacher: str | Mapping[str, Any] = ""
    arrangement: Mapping[str, Any] = field(default_factory=dict)
    views_per_pass: str = BackboneSettings.views_per_pass

    def __post_init__(self) -> None:
        usual = "none" if self.needs.teacher == "none" else "independent"
        object.__setattr__(self, "teacher", self.teacher or usual)  # the class is frozen

    @property
    def teacher_settings(self) -> Mapping[str, Any]:
        """Differences from the defaults of `TeacherSettings`; none where there is no teacher."""
        return (TEACHERS[self.teacher].settings if isinstance(self.teacher, str) else self.teacher) or {}

    def arranged(self, name: str) -> Any:
        """Give what it says of `peers`, `sharing`, `views` or `classifiers`."""
        return self.arrangement.get(name, getattr(Arrangement, name))


STUDENT = Deploy("student", "best")
OF_ONE_TEACHER = Needs(foreign_teacher=True, ensemble="none", minimum_peers=1, deploy=STUDENT)
"""Students that learn from one network of its own."""
OF_A_TEACHER = Needs(teacher="none", ensemble="none", minimum_peers=1, maximum_peers=1, deploy=STUDENT)
"""What a teacher itself is trained by, or what is fitted on it, before its student."""

PRESETS: dict[str, MethodPreset] = {
    "baseline": MethodPreset(
        "Cross-entropy only; the same networks, the same teacher following passively.",
        NoSettings,
        Needs(teacher="none", minimum_peers=1),
        teacher="passive",
    ),
    "cl_ilr": MethodPreset(
        "Collaborative learning with intermediate-level sharing: heads on one trunk, gradient scaled where they meet.",
        CLILRSettings,
        Needs(teacher="none", ensemble="none", trunk=True, deploy=STUDENT),
        arrangement={"views": "shared"},
    ),
    "dkel": MethodPreset(
        "DKEL as its abstract describes it (our reading): decaying ensemble of teachers, correct ramp-up.", DKELSettings
    ),
    "dkel_released": MethodPreset(
        "DKEL with the arithmetic of the authors' released code, quirks included.",
        DKELSettings,
        settings={"rampup": {"scale": 0.1, "form": "released"}, "ensemble": {"ramped": True}},
        teacher="copy",
        arrangement={"classifiers": "released"},
        views_per_pass="one",
    ),
    "consistent": MethodPreset(
        "A frozen teacher's channels are rearranged for this student before their maps are compared.",
        ConsistentSettings,
        replace(OF_ONE_TEACHER, batches=True, maximum_peers=1),
        teacher="frozen",
        arrangement={"peers": 1},
    ),
    "dih": MethodPreset(
        "Intermediate classifier heads, fitted on the frozen teacher's stages, teach beside its own output.",
        DIHSettings,
        replace(OF_ONE_TEACHER, fitted_by="heads"),
        teacher="frozen",
        arrangement={"peers": 1},
    ),
    "dml": MethodPreset(
        "Deep mutual learning: separate networks on one view learn from each other's predictions.",
        DMLSettings,
        Needs(teacher="none", ensemble="none", deploy=STUDENT),
        arrangement={"sharing": "nothing", "views": "shared"},
    ),
    "ekd": MethodPreset(
        "Evolutionary distillation (our reading): teacher and student from scratch together, guided block by block.",
        EKDSettings,
        OF_ONE_TEACHER,
        teacher="online",
        arrangement={"peers": 1},
    ),
    "ffl": MethodPreset(
        "Feature fusion: peers and a classifier of their fused feature maps teach each other.",
        FFLSettings,
        Needs(teacher="none", ensemble="own", stages=True, deploy=STUDENT),
        arrangement={"peers": 2, "views": "shared"},
    ),
    "heads": MethodPreset(
        "Linear classifiers on the stages of a frozen network (backbone.weights): the second stage of dih.",
        HeadsSettings,
        replace(OF_A_TEACHER, fixed_student=True),
        arrangement={"peers": 1},
    ),
    "iakd": MethodPreset(
        "Interactive distillation: blocks of a frozen teacher stand in the student's forward pass at random.",
        IAKDSettings,
        replace(OF_ONE_TEACHER, teacher_outputs=False, time=True, batches=True, maximum_peers=1),
        teacher="frozen",
        arrangement={"peers": 1},
    ),
    "kd": MethodPreset(
        "Offline distillation in two stages: a teacher is trained (or loaded), then frozen and taught from.",
        KDSettings,
        OF_ONE_TEACHER,
        teacher="frozen",
        arrangement={"peers": 1},
    ),
    "kdcl": MethodPreset(
        "Collaborative learning: separate networks with a view each learn from one target made of all of them.",
        KDCLSettings,
        Needs(teacher="none", ensemble="none", deploy=STUDENT),
        arrangement={"sharing": "nothing"},
    ),
    "kdpm": MethodPreset(
        "One teacher that learns online, and students that learn from it and from each other.",
        KDPMSettings,
        OF_ONE_TEACHER,
        teacher="online",
        arrangement={"peers": 2, "sharing": "nothing", "views": "shared"},
    ),
    "mean_teacher": MethodPreset(
        "Mean Teacher: the student stays consistent with its moving average, each on views of its own.",
        MeanTeacherSettings,
        Needs(ensemble="none", minimum_peers=1, teacher_views=True),
        teacher="mean_teacher",
        arrangement={"peers": 1, "views": "per_peer_and_teacher"},
    ),
    "okddip": MethodPreset(
        "Diverse peers: auxiliary peers attend to each other and teach a group leader, the last peer.",
        OKDDipSettings,
        Needs(teacher="none", ensemble="none", minimum_peers=3, deploy=Deploy("student", -1)),
        arrangement={"peers": 4, "views": "shared"},
    ),
    "one": MethodPreset(
        "On-the-fly native ensemble: branches learn from their gated ensemble.",
        ONESettings,
        Needs(teacher="none", ensemble="own", stages=True, trunk=True, deploy=Deploy("student", 0)),
        arrangement={"views": "shared"},
    ),
    "sftn": MethodPreset(
        "A student-friendly teacher: it is trained with branches of its student's blocks (teacher.training=sftn).",
        SFTNSettings,
        OF_A_TEACHER,
        arrangement={"peers": 1},
    ),
    "soteacher": MethodPreset(
        "A student-oriented teacher: smooth, and consistent with itself over time (teacher.training=soteacher).",
        SoTeacherSettings,
        replace(OF_A_TEACHER, time=True, batches=True),
        arrangement={"peers": 1},
    ),
    "online_checkpoints": MethodPreset(
        "The student follows the teacher of the same moment, which learns from the labels alone.",
        OnlineCheckpointsSettings,
        OF_ONE_TEACHER,
        teacher="gradient",
        arrangement={"peers": 1},
    ),
    "pcl": MethodPreset(
        "Peer collaborative learning: individual teachers only, no assembled knowledge.", PCLSettings, teacher="follow"
    ),
}
"""By name: the shipped ones, and those of the user's own that have been registered."""
