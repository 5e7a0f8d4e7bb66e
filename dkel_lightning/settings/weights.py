"""The two weights that follow the time of the training: the ramp-up, and the decaying ensemble of teachers.

A length is in epochs or a share of the run. On the command line the default lengths are those of the experiment's
`protocol` (`Follows`), in Python those of `schedules=` of `DistillationModule.build`. `callbacks/schedules` sets the
weights before each batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.schedules import RAMPUP_FORMS, TEACHER_WEIGHTS, Clock, ensemble_weight
from dkel_lightning.settings.declarations import TIME, Follows, Settings, choice, number, switch


@dataclass(frozen=True)
class RampUp(Settings, node="method.rampup"):
    """The ramp-up r(e) of a distillation weight."""

    scale: Annotated[
        float,
        number("lambda: distillation weight at the end of the ramp-up.", 0, 1e6),
        Follows("protocol.rampup.scale"),
    ] = 1.0
    epochs: Annotated[
        float | None, number("a: length of the ramp-up, in whole epochs.", 0, TIME), Follows("protocol.rampup.epochs")
    ] = 80
    share: Annotated[
        float | None,
        number("Length as a share of the run, read at every step.", 0, 1),
        Follows("protocol.rampup.share"),
    ] = None
    form: Annotated[str, choice("Form of the ramp-up; released: as the authors' code computes it.", *RAMPUP_FORMS)] = (
        "correct"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_one_of("epochs", "share")

    def weight(self, clock: Clock) -> float:
        """Return r at this moment."""
        form = RAMPUP_FORMS[self.form]
        if self.share is not None:
            return form(clock.fraction, self.scale, clock.share_in_epochs(self.share, "method.rampup.share"))
        assert self.epochs is not None
        return form(clock.epoch, self.scale, self.epochs)


@dataclass(frozen=True)
class EnsembleTerm(Settings, node="method.ensemble"):
    """The decaying ensemble: how the assembled teachers are formed and weighted; see `TEACHER_WEIGHTS`."""

    decay: Annotated[
        float | None,
        number("k in v(e) = exp(-k e), the decaying weight of the ensemble.", 0, 1e6),
        Follows("protocol.ensemble.decay"),
    ] = 0.5
    decay_share: Annotated[
        float | None,
        number("1/k as a share of the run, read at every step.", 1e-9, 1e9),
        Follows("protocol.ensemble.decay_share"),
    ] = None
    cutoff: Annotated[float, number("v at or below this is 0.", 0, 0.999999)] = 0.01
    ramped: Annotated[bool, switch("Multiply the assembled term by the ramp-up.")] = False
    space: Annotated[str, choice("Space in which teachers are averaged.", "logits", "probabilities")] = "logits"
    include_self: Annotated[bool, switch("Include a peer's own teacher in its mean.")] = False
    weights: Annotated[str, choice("Weights of the assembled and the individual teachers.", *TEACHER_WEIGHTS)] = (
        "complement"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_one_of("decay", "decay_share")

    def weight(self, clock: Clock) -> float:
        """Return v at this moment."""
        if self.decay_share is not None:
            steps = clock.time_constant(self.decay_share, "method.ensemble.decay_share")
            return ensemble_weight(clock.fraction, clock.steps_per_epoch / steps, self.cutoff)
        assert self.decay is not None
        return ensemble_weight(clock.epoch, self.decay, self.cutoff)
