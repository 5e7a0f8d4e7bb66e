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
"""Seconds to wait for a batch of a worker."""

Key = tuple[Any, ...]
"""Seed and labels of the augmentation of a pass, for `runtime.seeding.generator`."""


class Source(ABC):
    """Make batches of given samples; `labels` are int64 `[N]`."""

    labels: Tensor

    @abstractmethod
    def batches(
        self, indices: Sequence[Tensor], key: Key | None = None, rank: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        """Yield the batches of these sample indices; `first` is the position of the first batch in its pass.

        `key` seeds the augmentation; without it images are only normalised.
        """

    def copy(self) -> Source:
        """Return a source that can be iterated independently of this one."""
        return self


class DeviceImages(Source):
    """Batches gathered from uint8 images on the device, augmented and normalised there in batched operations.

    Augmentations are keyed by (seed, "augment", epoch, rank, batch number) and drawn on the device, so they repeat on
    the same kind of device only.

    Args:
        images: uint8 `[M, C, H, W]`.
        labels: int64 `[N]`, on the same device.
        augment: Makes the views.
        views: Views of each sample: 1, the number of peers, or twice that where the teacher has its own.
        rows: Rows of `images` that belong to the split, int64 `[N]`; None: all.
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
        on_device = torch.cat([*indices]).to(device)  # one copy per pass
        for number, chosen in enumerate(torch.split(on_device, [*map(len, indices)]), start=first):
            images = self.images.index_select(0, self.rows.index_select(0, chosen))
            if key is None:
                images = self.augment.normalize(images)
            else:
                images = self.augment(images, generator(*key, rank, number, device=device), self.views)
            yield Batch(images, self.labels.index_select(0, chosen), chosen)


Request = tuple[NDArray[np.int64], Key | None]
"""Sample indices of a batch (an array, since a tensor would use shared memory) and the key of its augmentation."""


class _Batches(Dataset["Batch | DataError"]):
    """Make whole batches of uint8 views in a worker, or return the error.

    torch would add the worker's traceback to an error raised here.
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
    """Ignore signals sent to the process group: the parent needs its workers to finish the step."""
    for name in ("SIGINT", "SIGUSR1"):
        signal.signal(getattr(signal, name, signal.SIGINT), signal.SIG_IGN)


class WorkerImages(Source):
    """Batches read and augmented by persistent workers of a torch `DataLoader`.

    Augmentations are keyed by (seed, "augment", epoch, rank, batch number, index), so they do not depend on the number
    of workers; they differ from those of `DeviceImages`. Images are sent as uint8 and normalised on `device`.

    Args:
        stored: The images.
        augment: Makes the views.
        views: Views of each sample: 1, the number of peers, or twice that where the teacher has its own.
        workers: Worker processes; 0: this process.
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
        self._requests: list[Request] = []  # the sampler, filled for each pass
        self._loader: DataLoader[Batch | DataError] = DataLoader(
            self.data,
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            timeout=TIMEOUT if workers else 0,
            generator=torch.Generator(),  # otherwise torch would advance the global generator to seed workers
            worker_init_fn=_ignore_signals,
        )

    def copy(self) -> WorkerImages:
        data, workers = self.data, self._loader.num_workers
        return WorkerImages(data.stored, data.augment, data.views, workers=workers, device=self.device)

    def batches(
        self, indices: Sequence[Tensor], key: Key | None = None, rank: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        numbered = enumerate(indices, start=first)
        self._requests[:] = [(batch.numpy(), key and (*key, rank, number)) for number, batch in numbered]
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            views = self.data.augment.normalize(batch.views.to(self.device, non_blocking=True))
            yield Batch(views, batch.labels, batch.indices)
