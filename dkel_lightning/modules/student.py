"""The student: the peers that are optimised."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from dkel_lightning.modules.optim import OptimizerFactory, OwnParts, SchedulerFactory, configure
from dkel_lightning.modules.outputs import StudentOutput
from dkel_lightning.modules.peers import PeersModule
from dkel_lightning.networks import PeerNetwork


class StudentModule(PeersModule):
    """Peers that learn by gradient.

    In a DistillationModule they learn from labels, ensemble and teachers. Fitted alone, in any Lightning Trainer,
    they learn from labels only: the plain baseline, without ensemble and without teacher.

    Args:
        network: see PeersModule.
        optimizer: see PeersModule.
        scheduler: see PeersModule.
        interval: see PeersModule.
        peer_lr_scale: factor on the learning rate of each peer's own part (its branch, or the whole of a separate
            network), which is then the group `student/peer_i` of the optimizer.
        frozen_peers: peers whose own part gets no gradient and keeps BatchNorm in eval mode. A shared trunk goes on
            learning, also from what the frozen branches pass back to it.
    """

    def __init__(
        self,
        network: PeerNetwork,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        interval: str = "epoch",
        *,
        peer_lr_scale: Sequence[float] | None = None,
        frozen_peers: Sequence[int] = (),
    ) -> None:
        super().__init__(network, optimizer, scheduler, interval)
        self.peer_lr_scale = tuple(peer_lr_scale) if peer_lr_scale is not None else None
        self.frozen_peers = tuple(frozen_peers)
        self._still = False
        for peer in self.frozen_peers:
            network.own_part(peer).requires_grad_(False).eval()

    def stand_still(self, still: bool) -> None:
        """Keep all weights and statistics as they are, in eval mode; or learn, as a student does."""
        if still != self._still:
            self._still = still
            self.network.requires_grad_(not still)
            for peer in self.frozen_peers:
                self.network.own_part(peer).requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> StudentModule:
        """Follow the root's mode, but for the frozen peers, and for all of them where they stand still."""
        super().train(mode)
        if self._still:
            self.network.eval()
        for peer in self.frozen_peers:
            self.network.own_part(peer).eval()
        return self

    def scaled_parts(self, name: str) -> OwnParts:
        """Name the parts with a learning rate of their own, `<name>/peer_i`; none without factors."""
        scales = enumerate(self.peer_lr_scale or ())
        return {f"{name}/peer_{peer}": (self.network.own_part(peer), scale) for peer, scale in scales}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimise the network (only when fitted on its own)."""
        own = self.scaled_parts("network")
        return configure({"network": self.network}, *self._factories, own, trainer=self._trainer)

    def forward(self, views: Tensor) -> StudentOutput:
        """Classify `views`, [B, V, C, H, W] (peer i sees view i) or [B, C, H, W] (all see the same)."""
        return StudentOutput.of(self.pass_through(views))
