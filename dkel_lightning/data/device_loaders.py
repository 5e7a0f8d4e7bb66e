"""Loaders, which give order and place in the epoch, and batches made on the device that holds the images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dkel_lightning.data.augment import CropFlip
from dkel_lightning.data.batch import Batch
from dkel_lightning.data.order import TrainingOrder, balancing_weights, evaluation_batches
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.seeding import Label, generator


class Key(NamedTuple):
    """Names the augmentation of a pass; with a batch's or a sample's number it gives the generator of its draws."""

    seed: int
    labels: tuple[Label, ...]

    def generator(self, *labels: Label, device: torch.device | str = "cpu") -> torch.Generator:
        """Make the generator of what `labels` number."""
        return generator(self.seed, *self.labels, *labels, device=device)


class Source(ABC):
    """Makes batches of the samples that a loader draws: `DeviceImages` and `WorkerImages`.

    Attributes:
        labels: int64 `[N]`.
        loader: What checkpoints call a loader of it.
    """

    labels: Tensor
    loader: str

    @abstractmethod
    def make(self, batches: Sequence[Tensor], key: Key | None = None, rank: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of these draws of a `TrainingOrder`; `first` is the number of the first in its pass.

        Training batches, augmented by what `key` draws; without a key, batches as an evaluation sees them.
        """

    def apart(self) -> Source:
        """Give a source for a second pass at the same time."""
        return self


class TrainingLoader:
    """An iterable of training batches whose order and augmentation are functions of (seed, epoch, rank).

    It is not a torch `DataLoader`, so Lightning neither wraps nor rebuilds it. Lightning calls `set_epoch` on what it
    finds under `sampler`, after it has called `iter`: so `iter` fixes nothing, the first `next` does. Its state is the
    number of batches handed out in the epoch, which Lightning keeps in every checkpoint.

    Indices count within the training images given, 0..N-1, for methods that keep a memory per sample.

    Args:
        source: Makes the batches.
        batch_size: Samples a batch and process.
        seed: Seed of order and augmentation.
        epoch: The epoch to start in.
        rank: This process, in 0..world-1.
        world: Number of processes.
        drop_last: Leave out a last batch that is smaller than `batch_size`.
        balanced: Draw samples with replacement, so that all classes come equally often.

    Attributes:
        fixed_order: Whether every epoch has the order of epoch 0; the augmentation differs all the same.
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
        balanced: bool = False,
    ) -> None:
        weights = balancing_weights(source.labels) if balanced else None
        self.order = TrainingOrder(len(source.labels), batch_size, rank, world, drop_last, weights)
        self.source = source
        self.seed = seed
        self.epoch = epoch
        self._handed_out = 0
        self._skip = 0
        self._saved_layout: dict[str, int | str] | None = None
        self.fixed_order = False

    @property
    def sampler(self) -> TrainingLoader:
        """The object that Lightning tells the epoch: the loader itself."""
        return self

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Draw what comes next from `epoch`; a position loaded for another epoch is forgotten."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._handed_out = self._skip = 0

    def __iter__(self) -> Iterator[Batch]:
        start, self._skip = self._skip, 0
        self._check_layout(start)
        self._handed_out = start
        batches = self.order.batches(self.seed, "order", 0 if self.fixed_order else self.epoch)
        key = Key(self.seed, ("augment", self.epoch))
        for batch in self.source.make(batches[start:], key, self.order.rank, start):
            # Counted before the batch leaves: a checkpoint written while it is being trained on includes it.
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch, as plain numbers and strings."""
        return {"epoch": self.epoch, "handed_out": self._handed_out, "layout": self._layout()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a place in an epoch; the next iteration of that epoch gives exactly the batches that were left."""
        self.epoch = state_dict["epoch"]
        self._handed_out = self._skip = state_dict["handed_out"]
        self._saved_layout = state_dict["layout"]

    def initialisation_batches(self, seed: int, steps: int) -> Iterator[Batch]:
        """Yield `steps` training batches keyed by (seed, "init", rank), in as many passes as they need.

        The loader's own order and place in the epoch are left alone.
        """
        return islice(self._initialisation_passes(seed), steps)

    def _initialisation_passes(self, seed: int) -> Iterator[Batch]:
        source = self.source.apart()
        for number in count():
            batches = self.order.batches(seed, "init", "order", number)
            yield from source.make(batches, Key(seed, ("init", "augment", number)), self.order.rank)

    def _layout(self) -> dict[str, int | str]:
        order = self.order
        return {
            "loader": self.source.loader,
            "samples": order.samples,
            "batch_size": order.batch_size,
            "world": order.world,
            "drop_last": int(order.drop_last),
        }

    def _check_layout(self, start: int) -> None:
        saved, self._saved_layout = self._saved_layout, None
        if start == 0 or saved is None or saved == self._layout():
            return
        now = self._layout()
        changes = ", ".join(f"{key} {saved.get(key)} -> {now[key]}" for key in now if saved.get(key) != now[key])
        raise ConfigError(
            f"the checkpoint was written after batch {start} of epoch {self.epoch}, and the batches have changed since "
            f"({changes}): resume with the same settings, or from a checkpoint written at the end of an epoch"
        )


class EvaluationLoader:
    """Evaluation batches, in order; how they are shared out between processes: see `evaluation_batches`.

    Args:
        source: Makes the batches.
        batch_size: Samples a batch and process.
        rank: This process, in 0..world-1.
        world: Number of processes.
    """

    def __init__(self, source: Source, *, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.source = source
        self.batches = evaluation_batches(len(source.labels), batch_size, rank, world)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self.source.make(self.batches)


class DeviceImages(Source):
    """Batches cut from uint8 images that lie on the device, augmented or normalised there in batched operations.

    The augmentation of a batch is keyed by (seed, "augment", epoch, rank, batch number), its generator lies on the
    device of the images: equal seeds repeat on one kind of device, not across kinds.

    Args:
        images: uint8 `[M, C, H, W]`.
        labels: int64 `[N]`, on the same device.
        augment: Makes the views.
        views: Views of each sample, 1 or the number of peers.
        rows: Which of the images are the samples, int64 `[N]`; None: all of them.
    """

    loader = "DeviceLoader"

    def __init__(
        self, images: Tensor, labels: Tensor, augment: CropFlip, views: int = 1, *, rows: Tensor | None = None
    ) -> None:
        self.images = images
        self.labels = labels
        self.augment = augment
        self.views = views
        self.rows = rows

    def make(self, batches: Sequence[Tensor], key: Key | None = None, rank: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield the batches."""
        device = self.images.device
        # One copy a pass, not one a batch.
        drawn = (torch.cat([*batches]) % len(self.labels)).to(device) if batches else None
        indices = torch.split(drawn, [*map(len, batches)]) if drawn is not None else ()
        for number, chosen in enumerate(indices, start=first):
            images = self.images.index_select(0, chosen if self.rows is None else self.rows.index_select(0, chosen))
            if key is None:
                images = self.augment.normalize(images)
            else:
                images = self.augment(images, key.generator(rank, number, device=device), self.views)
            yield Batch(images, self.labels.index_select(0, chosen), chosen)
