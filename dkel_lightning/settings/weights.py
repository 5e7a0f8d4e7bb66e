"""The two weights that follow the time of the training: the ramp-up, and the decaying ensemble of teachers."""

from __future__ import annotations

from dataclasses import dataclass

from dkel_lightning.errors import ConfigError
from dkel_lightning.schedules import (
    RAMPUP_FORMS,
    TEACHER_WEIGHTS,
    Clock,
    ensemble_weight,
    exactly_one,
    non_negative,
    one_of,
)


@dataclass(frozen=True)
class RampUp:
    """The ramp-up r(e) of a distillation weight.

    Attributes:
        scale: lambda, the weight at the end of the ramp-up.
        epochs: a, its length in epochs; None when `share` is given.
        share: its length as a share of the run; None when `epochs` is given.
        form: `correct`, or `released` for the arithmetic of the authors' code.
    """

    scale: float = 1.0
    epochs: float | None = 80
    share: float | None = None
    form: str = "correct"

    def __post_init__(self) -> None:
        non_negative("method.rampup.scale", self.scale)
        exactly_one("method.rampup", epochs=self.epochs, share=self.share)
        one_of("method.rampup.form", self.form, RAMPUP_FORMS)

    def weight(self, clock: Clock) -> float:
        """Give r at this moment."""
        form = RAMPUP_FORMS[self.form]
        if self.share is not None:
            return form(clock.fraction, self.scale, clock.share_in_epochs(self.share, "method.rampup.share"))
        assert self.epochs is not None
        return form(clock.epoch, self.scale, self.epochs)


@dataclass(frozen=True)
class EnsembleTerm:
    """The decaying ensemble: how the assembled teachers are formed and weighted.

    Attributes:
        decay: k in `v(e) = exp(-k e)`, per epoch; None when `decay_share` is given.
        decay_share: 1 / k as a share of the run; None when `decay` is given.
        cutoff: v at or below this is 0.
        ramped: multiply the assembled term by the ramp-up (g = r) instead of by lambda (g = lambda).
        space: average `logits` or `probabilities`.
        include_self: let a peer's own teacher take part in its mean.
        weights: the pair (G, H) by name, see `TEACHER_WEIGHTS`.
    """

    decay: float | None = 0.5
    decay_share: float | None = None
    cutoff: float = 0.01
    ramped: bool = False
    space: str = "logits"
    include_self: bool = False
    weights: str = "complement"

    def __post_init__(self) -> None:
        exactly_one("method.ensemble", decay=self.decay, decay_share=self.decay_share)
        if not 0 <= self.cutoff < 1:
            raise ConfigError(f"method.ensemble.cutoff must lie in [0, 1), got {self.cutoff}.")
        one_of("method.ensemble.space", self.space, ("logits", "probabilities"))
        one_of("method.ensemble.weights", self.weights, TEACHER_WEIGHTS)

    def weight(self, clock: Clock) -> float:
        """Give v at this moment."""
        if self.decay_share is not None:
            constant = clock.share_in_epochs(self.decay_share, "method.ensemble.decay_share")
            return ensemble_weight(clock.fraction, 1.0 / constant, self.cutoff)
        assert self.decay is not None
        return ensemble_weight(clock.epoch, self.decay, self.cutoff)
