"""The student: the peers that are optimised."""

from __future__ import annotations

from torch import Tensor, nn

from dkel_lightning.modules.peers import PeersModule
from dkel_lightning.networks import PeerOutputs


class StudentModule(PeersModule):
    """Peers that learn by gradient.

    In a DistillationModule they learn from labels, ensemble and teachers; alone, in any Lightning Trainer, from labels
    only.
    """

    def freeze_weights(self, frozen: bool) -> None:
        """Freeze or unfreeze the network; a frozen one stays in eval mode."""
        if frozen != self.is_frozen:
            self.is_frozen = frozen
            self.network.requires_grad_(not frozen)
            self.train(self.training)

    def parts(self) -> dict[str, nn.Module]:
        """Return the classifiers, and all parameters before them, for separate learning rates."""
        classifiers = nn.ModuleList(self.network.classifiers)
        own = {id(parameter) for parameter in classifiers.parameters()}
        before = [parameter for parameter in self.network.parameters() if id(parameter) not in own]
        return {"student": nn.ParameterList(before), "student_classifiers": classifiers}

    def forward(self, views: Tensor) -> PeerOutputs:
        """Classify `views`, [B, V, C, H, W] (peer i sees view i) or [B, C, H, W] (all see the same)."""
        return self.pass_through(views)
