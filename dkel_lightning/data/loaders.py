"""Loaders: order of samples and position in the epoch. Sources make the batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import torch

from dkel_lightning.data.batch import Batch
from dkel_lightning.data.order import MixedOrder, TrainingOrder, evaluation_batches
from dkel_lightning.data.sources import Source
from dkel_lightning.errors import DataError


class TrainingLoader:
    """Training batches whose order and augmentation are functions of (seed, epoch, rank).

    It is not a torch `DataLoader`, so Lightning neither wraps nor rebuilds it. Lightning calls `set_epoch` on the
    attribute `sampler` after `iter`, so the epoch is read at the first `next`. The state is the number of batches
    yielded in the epoch; Lightning stores it in every checkpoint.

    Args:
        source: Makes the batches.
        batch_size: Samples per batch and process.
        seed: Seed of order and augmentation.
        epoch: First epoch.
        rank: Index of this process.
        world: Number of processes.
        drop_last: Leave out a last batch that is smaller than `batch_size`.
        unlabelled_share: Share of each batch with labels -1; None does not mix.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        unlabelled_share: float | None = None,
    ) -> None:
        known = source.labels.cpu() >= 0
        self.labelled, unlabelled = torch.nonzero(known).flatten(), torch.nonzero(~known).flatten()
        layout = (batch_size, rank, world, drop_last)
        self.order: TrainingOrder | MixedOrder
        if unlabelled_share:
            self.order = MixedOrder(len(self.labelled), len(unlabelled), unlabelled_share, *layout)
            self.samples = torch.cat([self.labelled, unlabelled])
        else:
            self.samples = torch.arange(len(known))
            self.order = TrainingOrder(len(known), *layout)
        self.source = source
        self.seed = seed
        self.epoch = epoch
        self._handed_out = 0
        self._skip = 0

    @property
    def sampler(self) -> TrainingLoader:
        """The object whose `set_epoch` Lightning calls."""
        return self

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Continue with `epoch`; drop a position restored for another epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._handed_out = self._skip = 0

    def __iter__(self) -> Iterator[Batch]:
        start, self._skip = self._skip, 0
        self._handed_out = start
        order = self.order.batches(self.seed, "order", self.epoch)
        indices = [self.samples[positions] for positions in order]
        key = (self.seed, "augment", self.epoch)
        for batch in self.source.batches(indices[start:], key, self.order.rank, start):
            # Counted before the yield: a checkpoint written during the step includes the batch.
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch."""
        return {"epoch": self.epoch, "handed_out": self._handed_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a position; the next pass over that epoch yields the remaining batches."""
        self.epoch = state_dict["epoch"]
        self._handed_out = self._skip = state_dict["handed_out"]

    def initialisation_batches(self, seed: int, steps: int) -> Iterator[Batch]:
        """Yield `steps` training batches of labelled images, keyed by (seed, "init", rank).

        The order and position of the loader do not change.
        """
        return islice(self._initialisation_passes(seed), steps)

    def _initialisation_passes(self, seed: int) -> Iterator[Batch]:
        source, layout = self.source.copy(), self.order
        if len(self.labelled) == 0:
            raise DataError("The teacher is initialised on labelled training images, and none has a label.")
        drop_last = layout.drop_last and len(self.labelled) // layout.world >= layout.batch_size
        order = TrainingOrder(len(self.labelled), layout.batch_size, layout.rank, layout.world, drop_last)
        for number in count():
            indices = [self.labelled[positions] for positions in order.batches(seed, "init", "order", number)]
            yield from source.batches(indices, (seed, "init", "augment", number), self.order.rank)


class EvaluationLoader:
    """Evaluation batches in order, divided between processes by `evaluation_batches`."""

    def __init__(self, source: Source, *, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.source = source
        self.indices = evaluation_batches(len(source.labels), batch_size, rank, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Batch]:
        return self.source.batches(self.indices)
