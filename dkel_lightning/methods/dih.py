"""DIH: distilling via intermediate classifier heads (Asadian & Salehi-Abari, arXiv 2103.00497)."""

from __future__ import annotations

import torch
from torch import Tensor

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import cross_entropy
from dkel_lightning.methods.base import shipped
from dkel_lightning.methods.distilling import Distilling
from dkel_lightning.methods.heads import SETTING, Classifiers, Heads
from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.settings.with_teachers import DIHSettings


@shipped("dih")
class DIH(Distilling):
    """`L = sum_h [ a_h KD(z, sg t_h; T) + (1 - a_h) CE(z) ]` over the teacher's output and its k heads.

    The labels count k + 1 times, as in the released code; with `ce_once` once, `(1 - a) CE(z)`. Of several peers the
    sum. Detached: all that teaches; the heads are frozen. Deployed: the student.

    Source: released code 9bddcd9 (MIT); `ce_once` is ours.
    """

    settings: DIHSettings
    terms = ("ce", "kd", "kd_heads")  # labels, the teacher's output, its heads

    heads: Classifiers
    fitted: Tensor

    def attach_teacher(self, network: PeerNetwork) -> None:
        """Make the heads, which a stage before this one fits.

        Raises:
            ConfigError: layers that are not there, or another number of weights.
        """
        self.heads = Classifiers(network, self.settings.layers)
        self.heads.requires_grad_(False)
        self.register_buffer("fitted", torch.tensor(not len(self.heads)))
        given = self.settings.weights
        if not isinstance(given, int | float) and len(given) != 1 + len(self.heads):
            raise ConfigError(
                f"method.weights has {len(given)} entries for the teacher's output and {len(self.heads)} heads "
                f"({', '.join(self.heads.layers)}): give {1 + len(self.heads)}, or one number."
            )

    def take_over(self, prepared: Coordinator) -> None:
        """Take the heads that `method=heads` has fitted; of another checkpoint nothing.

        Raises:
            ConfigError: a head is not among them.
        """
        theirs = prepared.method.heads if isinstance(prepared.method, Heads) else None
        if theirs is None or not len(self.heads):
            return
        if missing := [layer for layer in self.heads.layers if layer not in theirs.layers]:
            raise ConfigError(
                f"{SETTING} names {', '.join(missing)}, and the heads of teacher.weights are on "
                f"{', '.join(theirs.layers)}: choose among these, or give the teacher's weights without heads."
            )
        for layer, head in zip(self.heads.layers, self.heads, strict=True):
            head.load_state_dict(theirs[theirs.layers.index(layer)].state_dict())
        self.fitted.fill_(True)

    def lacks(self) -> str | None:
        """Say whether the heads are as they were drawn."""
        if bool(self.fitted):
            return None
        return (
            "The heads of DIH have random weights and stay as they are: fit them by method=heads on the teacher, and "
            "give teacher.weights its checkpoint."
        )

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Compute the terms, each summed over the peers and weighted."""
        assert inputs.teacher is not None
        taught = inputs.teacher.logits.detach().unsqueeze(0)  # [1, V, B, C]
        if len(self.heads):
            heads = self.heads.logits(inputs.teacher.named)
            taught = torch.cat([taught, heads.detach().to(taught.dtype)])
        return self.terms_of(inputs.student.logits, taught, inputs.labels, inputs.classes)

    def terms_of(self, student: Tensor, taught: Tensor, labels: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Weigh what each output teaches: `student` [P, B, C], `taught` [1 + k, V, B, C], V = 1 or P; classes [B]."""
        given = self.settings.weights
        weights = [float(given)] * len(taught) if isinstance(given, int | float) else [float(each) for each in given]
        once = 1 - weights[0] if self.settings.ce_once else sum(1 - weight for weight in weights if weight > 0)
        ce = cross_entropy(student, labels).sum()
        nothing = ce.new_zeros(())
        kd = [
            weight * self.distil(student, output, classes).sum() if weight > 0 else nothing
            for weight, output in zip(weights, taught, strict=True)
        ]
        return {"ce": once * ce, "kd": kd[0], "kd_heads": sum(kd[1:], start=nothing)}
