"""The teacher: peers that follow the student slowly, learn by gradient, or stay frozen."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from dkel_lightning import ema
from dkel_lightning.functional import HALF_TYPES, cross_entropy, not_halved
from dkel_lightning.modules.batch import explain_shape_errors, unpack
from dkel_lightning.modules.optim import OptimizerFactory, SchedulerFactory
from dkel_lightning.modules.peers import PeersModule, batch_norms
from dkel_lightning.networks import PeerNetwork, PeerOutputs
from dkel_lightning.networks.peers import momentum
from dkel_lightning.runtime.processes import average_over_processes
from dkel_lightning.schedules import at_time
from dkel_lightning.settings.teacher import TeacherSettings

Pairs = tuple[list[Tensor], list[Tensor]]
"""Tensors of the teacher and of its student, in the same order."""


class TeacherModule(PeersModule):
    """The teacher peers. They receive no gradient unless their update is `gradient`.

    Alone, in any Lightning Trainer, they minimise the mean cross-entropy of the peers.

    Buffers, all in the checkpoint: `initialised`, whether nothing is left to initialise; `updates`, the number
    of EMA updates; `rate`, the current EMA rate.

    Attributes:
        is_external: whether its frozen weights come from another file or library, so that checkpoints leave them out.
    """

    initialised: Tensor
    updates: Tensor
    rate: Tensor

    def __init__(
        self,
        network: PeerNetwork,
        settings: TeacherSettings | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        interval: str = "epoch",
    ) -> None:
        super().__init__(network, optimizer, scheduler, interval)
        self.settings = settings or TeacherSettings()
        self.is_external = False
        self._alone = False
        self.is_read = True  # by the method
        # The student that is followed, and the pairs of parameters and of buffers.
        self._matched: tuple[PeerNetwork, Pairs, Pairs] | None = None
        self.register_buffer("initialised", torch.tensor(False))
        self.register_buffer("updates", torch.tensor(0, dtype=torch.int64))
        self.register_buffer("rate", torch.tensor(0.0))
        # The rate is also kept on the host, where a constant one lets the update be a single multi-tensor lerp.
        decay = self.settings.decay
        self._host_rate = 0.999 if decay is None else float(at_time(decay, 0))
        self.rate.fill_(self._host_rate)
        self.stand_alone(False)

    @property
    def learns(self) -> bool:
        """Whether the network receives gradients."""
        return self._alone or self.settings.update == "gradient"

    def forward(self, views: Tensor) -> PeerOutputs:
        """Classify `views` as StudentModule does; without a graph unless it learns.

        Views in a half type (`bf16-true`) are computed in that type, though the averaged weights stay in float32.
        """
        learning = self.learns and torch.is_grad_enabled()
        # `follow` sets running statistics that come from the student.
        follows = self.settings.batchnorm != "own" and not self.learns
        layers = batch_norms(self.network) if self.training and follows else []
        with torch.set_grad_enabled(learning), momentum(layers, 0.0), _autocast(views):
            output = self.pass_through(views)
        if views.dtype in HALF_TYPES:
            output = tree_map_only(Tensor, lambda value: value.to(views.dtype), output)
        return output

    def _apply(self, fn: Any, recurse: bool = True) -> TeacherModule:
        self._matched = None  # a move to another device or type replaces buffers
        # In a half type a step of the average towards the student would be rounded away.
        super()._apply(not_halved(fn) if self.settings.update == "ema" else fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def sees_batches(self) -> bool:
        """Whether it computes training batches: the method reads its outputs, or the pass updates it."""
        return self.is_read or self.learns or (self.settings.update == "ema" and self.settings.batchnorm == "own")

    def teach(self, views: Tensor) -> PeerOutputs:
        """Classify `views` as the student sees them; a single teacher of several peers classifies each view.

        Its logits are then [V, B, C]: entry i belongs to peer i's view.
        """
        rows_of_all = self._in_rows(views)
        output: PeerOutputs = self(rows_of_all)
        if rows_of_all is views:
            return output
        rows = (views.shape[1], views.shape[0], -1)
        assert isinstance(output.features, Tensor)
        named = output.named
        if named is not None:
            named = {name: tuple(of_views.chunk(views.shape[1])) for name, (of_views,) in named.items()}
        return PeerOutputs(output.logits.reshape(rows), output.features.reshape(rows), named=named)

    def _in_rows(self, views: Tensor) -> Tensor:
        """For a single teacher, flatten several views into the batch, [V B, C, H, W]."""
        several = self.num_peers == 1 and views.dim() == 5 and views.shape[1] > 1
        return views.transpose(0, 1).flatten(0, 1) if several else views

    def train(self, mode: bool = True) -> TeacherModule:
        # The released code of PCL, DKEL and Mean Teacher keeps the averaged network in train mode.
        # Matched again after every validation, in case a part of a network was replaced.
        self._matched = None
        super().train(mode)
        return self

    def set_rate(self, rate: float) -> None:
        """Set the EMA rate of the updates that follow."""
        if rate != self._host_rate:
            self._host_rate = rate
            self.rate.fill_(rate)

    def take_weights(self) -> None:
        """Mark the loaded weights as initialised; from now on checkpoints hold them."""
        self.settings = replace(self.settings, weights=None, pretrained=False)
        self.initialised.fill_(True)

    def start_from(self, student: PeerNetwork) -> None:
        """Copy the student's weights if `draw` is `student`."""
        if self.settings.draw == "student":
            with torch.no_grad():
                for kind in ("parameters", "buffers"):
                    for target, source in zip(*ema.matched(self.network, student, kind), strict=True):
                        target.copy_(source)

    def initialise(self, batches: Iterable[Any], lr: float) -> None:
        """Run the initialisation scheme: plain SGD on the teacher's own mini-batches, then freeze it.

        The loss is the mean of the peers' cross-entropies; no momentum. With several processes gradients are
        averaged over them before each step, so parameters stay equal on all of them.

        Args:
            batches: as many as there are steps.
            lr: learning rate of these steps.

        Source: DKEL, released code (two mini-batches at a hundredth of the learning rate).
        """
        learning = self.network if self.lr_scale else nn.ModuleList(self.network.classifiers)
        parameters = list(learning.parameters())
        mode = self.training
        self.stand_alone(True)
        optimizer = torch.optim.SGD(parameters, lr=lr, weight_decay=self.settings.init_weight_decay)
        with torch.enable_grad():
            for batch in batches:
                views, labels, _ = unpack(batch)
                with explain_shape_errors(views, self.network), _autocast(views):
                    logits = self.network(self._in_rows(views)).logits
                loss = cross_entropy(logits.reshape(-1, len(labels), logits.shape[-1]), labels).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                average_over_processes([p.grad for p in parameters if p.grad is not None])
                optimizer.step()
        self.network.zero_grad()  # those of frozen layers too
        self.train(mode)
        self.stand_alone(False)
        self.initialised.fill_(True)

    def follow(self, student: PeerNetwork) -> None:
        """Make one EMA update towards `student`; teachers with another update do not change."""
        if self.settings.update != "ema":
            return
        if self._matched is None or self._matched[0] is not student:
            parameters, buffers = (ema.matched(self.network, student, kind) for kind in ("parameters", "buffers"))
            self._matched = student, parameters, buffers
        _, parameters, buffers = self._matched
        rate = ema.update_rate(self.updates, self._host_rate, self.settings.start)
        ema.average_(*parameters, rate)
        if self.settings.batchnorm != "own":
            self._follow_statistics(*buffers, rate)
        self.updates += 1

    def _follow_statistics(self, ours: list[Tensor], theirs: list[Tensor], rate: float | Tensor) -> None:
        averaged = [self.settings.batchnorm == "ema" and tensor.is_floating_point() for tensor in ours]
        pairs = [*zip(ours, theirs, averaged, strict=True)]
        ema.average_([a for a, _, chosen in pairs if chosen], [b for _, b, chosen in pairs if chosen], rate)
        copied = [(a, b) for a, b, chosen in pairs if not chosen]
        if copied:
            torch._foreach_copy_([a for a, _ in copied], [b for _, b in copied])

    def supervised_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels).mean()

    def stand_alone(self, alone: bool) -> None:
        """Switch between training the teacher alone, with gradients, and teaching as configured."""
        self._alone = alone
        self.is_frozen = self.settings.update == "frozen" and not alone
        self.network.requires_grad_(self.learns)
        # Lightning does not change the mode of modules.
        self.train(alone or self.training)

    def setup(self, stage: str) -> None:
        if stage == "fit":  # Lightning calls the hooks of a module that is fitted alone
            self.stand_alone(True)

    def on_train_end(self) -> None:
        self.initialised.fill_(True)  # so that TeacherInitialisation leaves the weights as they are

    def teardown(self, stage: str) -> None:
        self.stand_alone(False)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_matched": None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not torch.equal(self.rate, torch.full_like(self.rate, self._host_rate)):
            self._host_rate = float(self.rate)


def _autocast(views: Tensor) -> AbstractContextManager[Any]:
    """Compute in the half type of `views` with weights of another type."""
    if views.dtype not in HALF_TYPES:
        return nullcontext()
    return torch.autocast(views.device.type, views.dtype, cache_enabled=False)
