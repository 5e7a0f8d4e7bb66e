"""The student: the peers that are optimised."""

from __future__ import annotations

from torch import Tensor

from dkel_lightning.modules.outputs import StudentOutput
from dkel_lightning.modules.peers import PeersModule


class StudentModule(PeersModule):
    """Peers that learn by gradient.

    In a DistillationModule they learn from labels, ensemble and teachers. Fitted alone, in any Lightning Trainer, they
    learn from labels only: the plain baseline, without ensemble and without teacher.
    """

    _frozen = False

    def freeze_weights(self, frozen: bool) -> None:
        """Freeze or unfreeze the network; a frozen one stays in eval mode."""
        if frozen != self._frozen:
            self._frozen = frozen
            self.network.requires_grad_(not frozen)
            self.train(self.training)

    def train(self, mode: bool = True) -> StudentModule:
        super().train(mode)
        if self._frozen:
            self.network.eval()
        return self

    def forward(self, views: Tensor) -> StudentOutput:
        """Classify `views`, [B, V, C, H, W] (peer i sees view i) or [B, C, H, W] (all see the same)."""
        return StudentOutput.of(self.pass_through(views))
