"""Sources of batches: images resident on the device, or read by worker processes."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dkel_lightning.data.augment import CropFlip, Crops
from dkel_lightning.data.batch import Batch
from dkel_lightning.data.imageset import StoredImages
from dkel_lightning.errors import DataError
from dkel_lightning.runtime.seeding import generator

TIMEOUT = 600
"""Seconds after which a worker that has made no batch ends the run."""


Key = tuple[Any, ...]
"""Seed and labels of the augmentation of a pass, for `runtime.seeding.generator`."""


class Source(ABC):
    """Makes batches of given samples, whose `labels` are int64 `[N]`."""

    labels: Tensor

    @abstractmethod
    def batches(
        self, indices: Sequence[Tensor], key: Key | None = None, rank: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        """Yield the batches of these sample indices; `first` is the number of the first one in its pass.

        Training views are augmented by draws of `key`; without a key images are only normalised.
        """

    def copy(self) -> Source:
        """Return a source that can be iterated at the same time as this one."""
        return self


class DeviceImages(Source):
    """Batches gathered from uint8 images on the device, augmented and normalised there in batched operations.

    The augmentation of a batch is keyed by (seed, "augment", epoch, rank, batch number) and drawn on the device: equal
    seeds repeat on one kind of device, not across kinds.

    Args:
        images: uint8 `[M, C, H, W]`.
        labels: int64 `[N]`, on the same device.
        augment: Makes the views.
        views: Views of each sample, 1 or the number of peers.
        rows: Rows of `images` that are the samples, int64 `[N]`; None: all of them.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, augment: CropFlip, views: int = 1, *, rows: Tensor | None = None
    ) -> None:
        self.images = images
        self.labels = labels
        self.augment = augment
        self.views = views
        self.rows = torch.arange(len(images), device=images.device) if rows is None else rows

    def batches(
        self, indices: Sequence[Tensor], key: Key | None = None, rank: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        if not indices:
            return
        device = self.images.device
        on_device = torch.cat([*indices]).to(device)  # one copy per pass, not one per batch
        for number, chosen in enumerate(torch.split(on_device, [*map(len, indices)]), start=first):
            images = self.images.index_select(0, self.rows.index_select(0, chosen))
            if key is None:
                images = self.augment.normalize(images)
            else:
                images = self.augment(images, generator(*key, rank, number, device=device), self.views)
            yield Batch(images, self.labels.index_select(0, chosen), chosen)


Request = tuple[NDArray[np.int64], Key | None]
"""Sample indices of one batch (an array, since a tensor would take shared memory) and the key of its augmentation."""


class _Batches(Dataset["Batch | DataError"]):
    """Makes whole batches of uint8 views in a worker, or returns the error that prevented it.

    torch would wrap an error that is raised here in the worker's traceback.
    """

    def __init__(self, stored: StoredImages, augment: CropFlip, views: int) -> None:
        self.stored = stored
        self.augment = augment
        self.views = views

    def __getitem__(self, request: Request) -> Batch | DataError:
        indices, key = torch.from_numpy(request[0]), request[1]
        try:
            if key is None:
                images = self.stored.read(indices)
            else:
                draws = [self.augment.draw(generator(*key, index), 1, self.views) for index in indices.tolist()]
                crops = Crops(*(torch.cat(parts, dim=1) for parts in zip(*draws, strict=True)))
                images = self.augment.cut(self.augment.read(self.stored, indices), crops)
        except (DataError, OSError) as error:
            return DataError(str(error))
        return Batch(images, self.stored.labels[indices], indices)


def _ignore_signals(worker: int) -> None:
    """Leave signals to the whole process group to the parent, which needs its workers to end the run."""
    for name in ("SIGINT", "SIGUSR1"):
        signal.signal(getattr(signal, name, signal.SIGINT), signal.SIG_IGN)


class WorkerImages(Source):
    """Batches read and augmented by the worker processes of a torch `DataLoader`, which live on between passes.

    The augmentation of a sample is keyed by (seed, "augment", epoch, index), so it depends neither on the number of
    workers nor on the number of processes; its draws differ from those of `DeviceImages`. Pixels travel as uint8 and
    are normalised on `device`.

    Args:
        stored: The images.
        augment: Makes the views.
        views: Views of each sample, 1 or the number of peers.
        workers: Worker processes; 0 makes the batches in this process.
        device: Device of the views; labels and indices stay on the CPU.
    """

    def __init__(
        self,
        stored: StoredImages,
        augment: CropFlip,
        views: int = 1,
        *,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.labels = stored.labels
        self.data = _Batches(stored, augment, views)
        self.device = device or torch.device("cpu")
        self._requests: list[Request] = []  # the sampler, which changes from pass to pass
        self._loader: DataLoader[Batch | DataError] = DataLoader(
            self.data,
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            timeout=TIMEOUT if workers else 0,
            generator=torch.Generator(),  # torch would seed workers from the global generator, and so advance it
            worker_init_fn=_ignore_signals,
        )

    def copy(self) -> WorkerImages:
        data, workers = self.data, self._loader.num_workers
        return WorkerImages(data.stored, data.augment, data.views, workers=workers, device=self.device)

    def batches(
        self, indices: Sequence[Tensor], key: Key | None = None, rank: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        self._requests[:] = [(batch.numpy(), key) for batch in indices]
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            views = self.data.augment.normalize(batch.views.to(self.device, non_blocking=True))
            yield Batch(views, batch.labels, batch.indices)
