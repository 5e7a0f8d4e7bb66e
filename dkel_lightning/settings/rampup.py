"""The ramp-up of a distillation weight.

Its length is in epochs or a share of the run. On the command line the default is that of the experiment's `protocol`
(`Follows`), in Python that of `schedules=` of `DistillationModule.build`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dkel_lightning.schedules import RAMPUP_FORMS, Clock
from dkel_lightning.settings.declarations import TIME, Follows, Settings, choice, number


@dataclass(frozen=True)
class RampUp(Settings, node="method.rampup", one_of=("epochs", "share")):
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

    def weight(self, clock: Clock) -> float:
        """Return r at this moment."""
        form = RAMPUP_FORMS[self.form]
        if self.share is not None:
            return form(clock.fraction, self.scale, clock.share_in_epochs(self.share, "method.rampup.share"))
        assert self.epochs is not None
        return form(clock.epoch, self.scale, self.epochs)
