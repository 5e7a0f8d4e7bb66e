"""The student: the peers that are optimised."""

from __future__ import annotations

from torch import Tensor

from dkel_lightning.modules.outputs import StudentOutput
from dkel_lightning.modules.peers import PeersModule


class StudentModule(PeersModule):
    """Peers that learn by gradient.

    In a DistillationModule they learn from labels, ensemble and teachers. Fitted alone, in any Lightning Trainer,
    they learn from labels only: the plain baseline, without ensemble and without teacher.
    """

    def forward(self, views: Tensor) -> StudentOutput:
        """Classify `views`, [B, V, C, H, W] (peer i sees view i) or [B, C, H, W] (all see the same)."""
        logits, features = self.network(views)
        return StudentOutput(logits, features)

    def stages(self, views: Tensor) -> StudentOutput:
        """Classify `views`, and keep what is computed on the way for methods that build on it."""
        seen = self.network.stages(views)
        return StudentOutput(seen.logits, seen.features, trunk=seen.trunk, maps=seen.maps)
