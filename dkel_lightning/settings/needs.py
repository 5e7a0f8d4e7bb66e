"""What a method needs of what stands around it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dkel_lightning.schedules import one_of
from dkel_lightning.settings.deploy import Deploy


@dataclass(frozen=True)
class Needs:
    """What a method needs, said once in its class; whoever builds or checks a training reads it here.

    Attributes:
        teacher: `required`, teacher peers. With `none` it reads nothing of them, and they follow passively where its
            preset or the user wants the student's moving average: one whose statistics are averaged too
            (`teacher.batchnorm=ema`) is passed no batch.
        teacher_outputs: it reads what its teacher says of a batch; else it takes parts of the teacher's network alone,
            and no batch passes one that is frozen.
        foreign_teacher: its teacher is one network of its own, of any architecture, rather than peers of the student's
            form; it teaches all peers. One that is frozen and given no weights is trained first, in a stage of its own.
        fitted_by: the method that fits what this one builds on to the frozen teacher, in a stage of its own.
        fixed_student: the student stays as it is, in eval mode, and only the method's own parts learn.
        time: it is told the time before every training batch (`tell_time`).
        batches: it may ask for training batches of its own at an epoch's start and end (`wants_batches`).
        teacher_views: it may be given 2 P views, of which the teacher sees the second half.
        ensemble: `classifier`, one that is trained over the peers' features; `own`, which the method's `combine` makes
            of its peers (a gate, a fusion); `none`.
        stages: wants `inputs.student.trunk` and `inputs.student.maps`.
        trunk: works on a trunk that the peers share.
        classes: works on one class a sample, and takes no labels that are distributions over the classes.
        minimum_peers: with fewer it is refused.
        maximum_peers: with more it is refused; None: it takes any number.
        deploy: what the method itself deploys: of networks that are equal in validation, and where nothing was
            validated. A peer that it numbers is the only one of its network that is chosen unless the user says so.
    """

    teacher: str = "required"
    teacher_outputs: bool = True
    foreign_teacher: bool = False
    fitted_by: str | None = None
    fixed_student: bool = False
    time: bool = False
    batches: bool = False
    teacher_views: bool = False
    ensemble: str = "classifier"
    stages: bool = False
    trunk: bool = False
    classes: bool = False
    minimum_peers: int = 2
    maximum_peers: int | None = None
    deploy: Deploy = field(default_factory=lambda: Deploy("teacher", "best"))

    def __post_init__(self) -> None:
        one_of("Needs.teacher", self.teacher, ("required", "none"))
        one_of("Needs.ensemble", self.ensemble, ("classifier", "own", "none"))
