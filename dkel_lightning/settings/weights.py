"""The two weights that follow the time of the training: the ramp-up, and the decaying ensemble of teachers.

Their lengths, and that of the teacher's EMA, are in epochs or shares of the run. What is not given follows the
experiment's `protocol` on the command line (`Follows`), and `schedules=` of `build` in Python (`assembly/parts`).
Before each batch `callbacks/schedules` reads the clock, and puts in force what `weight` and `rate` make of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.schedules import RAMPUP_FORMS, TEACHER_WEIGHTS, Clock, ensemble_weight
from dkel_lightning.settings.declarations import Settings
from dkel_lightning.settings.keys import TIME, Follows, ShareOfRun, choice, number, switch


@dataclass(frozen=True)
class RampUp(Settings, node="method.rampup"):
    """The ramp-up r(e) of a distillation weight; its form is `correct`, or `released` as the authors' code computes."""

    exclusive = ("epochs", "share")

    scale: Annotated[float, number("lambda: distillation weight at the end of the ramp-up.", 0, 1e6)] = 1.0
    epochs: Annotated[
        float | None, number("a: length of the ramp-up, in whole epochs.", 0, TIME), Follows("protocol.rampup.epochs")
    ] = 80
    share: Annotated[
        float | None,
        number("Its length as a share of the run, read at every step.", 0, 1),
        Follows("protocol.rampup.share"),
        ShareOfRun("method.rampup.epochs"),
    ] = None
    form: Annotated[str, choice("Form of the ramp-up.", *RAMPUP_FORMS)] = "correct"

    def weight(self, clock: Clock) -> float:
        """Give r at this moment."""
        form = RAMPUP_FORMS[self.form]
        if self.share is not None:
            return form(clock.fraction, self.scale, clock.share_in_epochs(self.share, "method.rampup.share"))
        assert self.epochs is not None
        return form(clock.epoch, self.scale, self.epochs)


@dataclass(frozen=True)
class EnsembleTerm(Settings, node="method.ensemble"):
    """The decaying ensemble: how the assembled teachers are formed and weighted; the pairs: `TEACHER_WEIGHTS`."""

    exclusive = ("decay", "decay_share")

    decay: Annotated[
        float | None,
        number("k in v(e) = exp(-k e), the decaying weight of the ensemble.", 0, 1e6),
        Follows("protocol.ensemble.decay"),
    ] = 0.5
    decay_share: Annotated[
        float | None,
        number("1/k as a share of the run, read at every step.", 1e-9, 1e9),
        Follows("protocol.ensemble.decay_share"),
        ShareOfRun("method.ensemble.decay"),
    ] = None
    cutoff: Annotated[float, number("v at or below this is 0.", 0, 0.999999)] = 0.01
    ramped: Annotated[bool, switch("Multiply the assembled term by the ramp-up.")] = False
    space: Annotated[str, choice("Space in which teachers are averaged.", "logits", "probabilities")] = "logits"
    include_self: Annotated[bool, switch("Let a peer's own teacher take part in its mean.")] = False
    weights: Annotated[str, choice("Pair of weights of assembled and individual teachers.", *TEACHER_WEIGHTS)] = (
        "complement"
    )

    def weight(self, clock: Clock) -> float:
        """Give v at this moment."""
        if self.decay_share is not None:
            constant = clock.share_in_epochs(self.decay_share, "method.ensemble.decay_share")
            return ensemble_weight(clock.fraction, 1.0 / constant, self.cutoff)
        assert self.decay is not None
        return ensemble_weight(clock.epoch, self.decay, self.cutoff)
