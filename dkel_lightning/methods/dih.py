"""DIH: distilling via intermediate classifier heads (Asadian & Salehi-Abari, arXiv 2103.00497)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import cross_entropy
from dkel_lightning.methods.base import Layers, Method, Needs, register
from dkel_lightning.methods.distilling import Distilling, Distils, Temperature
from dkel_lightning.methods.heads import SETTING, Classifiers, Heads
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.settings.declarations import either, number, several, switch


@dataclass(frozen=True)
class DIHSettings(Distils):
    """Settings of DIH.

    a weighs the main output and each head, 1 - a the labels: once for each output as in the released code, or
    `ce_once`. A weight of 0 in the list removes an output and its share of the labels.
    """

    weights: Annotated[
        float | tuple[float, ...],
        either(
            number("Weight a of each output of the teacher, or a list, the main output first.", 0, 1),
            several("", number("", 0, 1)),
        ),
    ] = 0.1
    temperature: Temperature = 5.0
    layers: Layers = None
    ce_once: Annotated[bool, switch("Count the labels once rather than once for each output.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = [self.weights] if isinstance(self.weights, int | float) else self.weights
        if self.ce_once and weights is self.weights:
            raise ConfigError("method.ce_once=true needs one weight for all outputs: give method.weights as a number.")
        if not any(weights):
            raise ConfigError("method.weights has no weight above 0, so there is nothing to distil.")


@register("dih", teacher="frozen", peers=1)
class DIH(Distilling):
    """Classifier heads fitted on the stages of the frozen teacher teach together with its output.

    `L = sum_h [ a_h KD(z, sg t_h; T) + (1 - a_h) CE(z) ]` over the teacher's output and its k heads.

    The labels count k + 1 times, as in the released code; with `ce_once` once, `(1 - a) CE(z)`. Losses of several peers
    are summed. Detached: all targets; the heads are frozen. Deployed: the student.

    Source: released code 9bddcd9 (MIT); `ce_once` is ours.
    """

    Settings = DIHSettings
    needs = Needs(foreign_teacher=True, fitted_by="heads")
    settings: DIHSettings
    terms = ("ce", "kd", "kd_heads")  # labels, the teacher's output, its heads

    heads: Classifiers
    fitted: Tensor

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        assert teacher is not None
        self.heads = Classifiers(teacher, self.settings.layers)
        self.heads.requires_grad_(False)
        self.register_buffer("fitted", torch.tensor(not len(self.heads)))
        weights = self.settings.weights
        if not isinstance(weights, int | float) and len(weights) != 1 + len(self.heads):
            raise ConfigError(
                f"method.weights has {len(weights)} entries for the teacher's output and {len(self.heads)} heads "
                f"({', '.join(self.heads.layers)}): give {1 + len(self.heads)}, or one number."
            )

    def load_prepared(self, prepared: Method) -> None:
        if not isinstance(prepared, Heads):
            return
        theirs = prepared.heads
        if missing := [layer for layer in self.heads.layers if layer not in theirs.layers]:
            raise ConfigError(
                f"{SETTING} names {', '.join(missing)}, and the heads of teacher.weights are on "
                f"{', '.join(theirs.layers)}: choose among these, or give the teacher's weights without heads."
            )
        for layer, head in zip(self.heads.layers, self.heads, strict=True):
            head.load_state_dict(theirs[theirs.layers.index(layer)].state_dict())
        self.fitted.fill_(True)

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        taught = inputs.teacher_logits.unsqueeze(0)  # [1, V, B, C]
        if len(self.heads):
            assert inputs.teacher is not None
            heads = self.heads.logits(inputs.teacher.named)
            taught = torch.cat([taught, heads.detach().to(taught.dtype)])
        return self.terms_of(inputs.student.logits, taught, inputs.labels, inputs.classes)

    def terms_of(self, student: Tensor, taught: Tensor, labels: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Weight what each output teaches: `student` [P, B, C], `taught` [1 + k, V, B, C], V = 1 or P; classes [B]."""
        setting = self.settings.weights
        weights = [setting] * len(taught) if isinstance(setting, int | float) else setting
        once = 1 - weights[0] if self.settings.ce_once else sum(1 - weight for weight in weights if weight > 0)
        ce = cross_entropy(student, labels).sum()
        nothing = ce.new_zeros(())
        kd = [
            weight * self.distil(student, output, classes).sum() if weight > 0 else nothing
            for weight, output in zip(weights, taught, strict=True)
        ]
        return {"ce": once * ce, "kd": kd[0], "kd_heads": sum(kd[1:], start=nothing)}
