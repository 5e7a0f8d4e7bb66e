"""DKEL: decoupled knowledge with ensemble learning (Shao & Chen, arXiv 2312.11218).

Only the paper's abstract and the authors' code are public. `dkel` is our reading of the abstract, `dkel_released`
the arithmetic of the code; they differ in settings only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from dkel_lightning.functional import assemble
from dkel_lightning.methods.base import register
from dkel_lightning.methods.pcl import PCL, PCLSettings
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.schedules import TEACHER_WEIGHTS, Clock, ensemble_weight, teacher_weights
from dkel_lightning.settings.declarations import Follows, Settings, choice, number, switch


@dataclass(frozen=True)
class EnsembleTerm(Settings, node="method.ensemble", one_of=("decay", "decay_share")):
    """How the teachers are assembled, and the weight of the assembled ones."""

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

    def weight(self, clock: Clock) -> float:
        """Return v at this moment."""
        if self.decay_share is not None:
            steps = clock.time_constant(self.decay_share, "method.ensemble.decay_share")
            return ensemble_weight(clock.fraction, clock.steps_per_epoch / steps, self.cutoff)
        assert self.decay is not None
        return ensemble_weight(clock.epoch, self.decay, self.cutoff)


@dataclass(frozen=True)
class DKELSettings(PCLSettings):
    """Settings of DKEL: those of PCL, and the decaying ensemble of teachers."""

    ensemble: EnsembleTerm = field(default_factory=EnsembleTerm)


@register("dkel")
@register(
    "dkel_released",
    meaning="DKEL with the arithmetic of the authors' released code, quirks included.",
    settings={"rampup": {"scale": 0.1, "form": "released"}, "ensemble": {"ramped": True}},
    teacher="copy",
    classifiers="released",
    views_per_pass="one",
)
class DKEL(PCL):
    """DKEL as its abstract describes it (our reading): decaying ensemble of teachers, correct ramp-up.

    `L = CE(z_E) + sum_i [ CE(z_i) + r KD(z_i, sg z_E) + G KD(z_i, sg mean_{j != i} t_j)
    + H mean_{j != i} KD(z_i, sg t_j) ]`, with G = g v and H = r (1 - v), g = lambda (or r where `ramped`).

    With P = 2 the mean over the other teachers is a single one, both teacher terms are the same, and v matters
    only through the total weight G + H. Detached and deployed as in PCL.
    """

    Settings = DKELSettings
    settings: DKELSettings
    terms = (*PCL.terms, "kd_assembled")  # and the assembled teachers to peers

    ensemble_weight: Tensor

    def __init__(self, peers: int, settings: DKELSettings | None = None) -> None:
        super().__init__(peers, settings)
        self.register_buffer("ensemble_weight", torch.zeros(()))

    def set_time(self, clock: Clock) -> None:
        super().set_time(clock)
        self.ensemble_weight.fill_(self.settings.ensemble.weight(clock))

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        ensemble, teachers = self.settings.ensemble, inputs.teacher_logits
        target = assemble(teachers, self.settings.temperature, space=ensemble.space, include_self=ensemble.include_self)
        assembled = self.distil(inputs.student.logits, target, inputs.classes).sum()
        individual = self.from_individual_teachers(inputs, include_self=ensemble.include_self)
        assembled_weight, individual_weight = self.teacher_weights()
        terms = self.ensemble_terms(inputs)
        terms["kd_individual"] = individual_weight * individual
        terms["kd_assembled"] = assembled_weight * assembled
        return terms

    def teacher_weights(self) -> tuple[Any, Any]:
        """Return (G, H), the current weights of the assembled and the individual teachers."""
        ensemble, ramp, scale = self.settings.ensemble, self.rampup_weight, self.settings.rampup.scale
        full = ramp if ensemble.ramped else scale
        return teacher_weights(ensemble.weights, self.ensemble_weight, ramp, full, scale)

    def current_weights(self) -> dict[str, Tensor]:
        assembled, individual = map(torch.as_tensor, self.teacher_weights())
        ours = {"ensemble_decay": self.ensemble_weight, "teacher_assembled": assembled}
        return {**super().current_weights(), **ours, "teacher_individual": individual}
