"""The same batches made in the worker processes of a torch `DataLoader`, for sets that do not fit on the device."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dkel_lightning.data.augment import CropFlip, Crops, Normalize
from dkel_lightning.data.batch import Batch
from dkel_lightning.data.device_loaders import TrainingLoader
from dkel_lightning.data.order import TrainingOrder, evaluation_batches
from dkel_lightning.runtime.seeding import Label, generator


class StoredImages:
    """Images of a split that stay where they are: an array in memory or a memory-mapped cache.

    Args:
        images: uint8 `[M, C, H, W]`.
        labels: Integers `[N]`, those of the chosen images.
        chosen: Indices `[N]` into `images`.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], chosen: NDArray[np.int64]) -> None:
        self.images = images
        self.labels = torch.from_numpy(labels)
        self.chosen = chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, indices: Tensor) -> Tensor:
        """Return a copy of the images (uint8 `[B, C, H, W]`) with these indices into the split."""
        return torch.from_numpy(self.images[self.chosen[indices.numpy()]])

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # A pickled memory map is a full copy of the file, one for each spawned worker.
        if isinstance(self.images, np.memmap) and self.images.filename is not None:
            state["images"] = str(self.images.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(state["images"], str):
            self.images = np.load(state["images"], mmap_mode="r", allow_pickle=False)


class Request(NamedTuple):
    """One batch asked of a worker: which samples, and the seed and labels that key their augmentation."""

    indices: Tensor
    seed: int
    labels: tuple[Label, ...]


class _TrainingBatches(Dataset[Batch]):
    """Answers a request with a training batch; the augmentation is keyed per sample, by (seed, *labels, index)."""

    def __init__(self, stored: StoredImages, augment: CropFlip, views: int) -> None:
        self.stored = stored
        self.augment = augment
        self.views = views

    def __getitem__(self, request: Request) -> Batch:
        draws = [
            self.augment.draw(generator(request.seed, *request.labels, index), 1, self.views)
            for index in request.indices.tolist()
        ]
        crops = Crops(*(torch.cat(parts, dim=1) for parts in zip(*draws, strict=True)))
        views = self.augment.apply(self.stored.read(request.indices), crops)
        return Batch(views, self.stored.labels[request.indices], request.indices)


class _EvaluationBatches(Dataset[Batch]):
    """Answers a request with a normalised evaluation batch."""

    def __init__(self, stored: StoredImages, normalize: Normalize) -> None:
        self.stored = stored
        self.normalize = normalize

    def __getitem__(self, request: Request) -> Batch:
        images = self.normalize(self.stored.read(request.indices))
        return Batch(images, self.stored.labels[request.indices], request.indices)


class _Requests:
    """The sampler of a `DataLoader` that lives on while the requests change from epoch to epoch."""

    def __init__(self) -> None:
        self.pending: Sequence[Request] = ()

    def __len__(self) -> int:
        return len(self.pending)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.pending)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C and a closed terminal reach the whole process group; the parent still needs its workers to end well."""
    for number in (getattr(signal, name, signal.SIGINT) for name in ("SIGINT", "SIGUSR1", "SIGHUP")):
        signal.signal(number, signal.SIG_IGN)


class _WorkerPool:
    """A `DataLoader` whose workers each make whole batches and stay alive between passes."""

    def __init__(self, dataset: Dataset[Batch], workers: int, pin_memory: bool) -> None:
        self._requests = _Requests()
        self._loader: DataLoader[Batch] = DataLoader(
            dataset,
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            # torch seeds workers from the global generator by default, which would move a user's random numbers.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_parent,
        )

    def make(self, requests: Sequence[Request]) -> Iterator[Batch]:
        self._requests.pending = requests
        yield from self._loader


class WorkerLoader(TrainingLoader):
    """Training batches read and augmented in worker processes.

    The augmentation of a sample is keyed by (seed, "augment", epoch, index), so that it does not depend on the number
    of workers, nor on the number of processes. The order is that of `DeviceLoader`; the crops drawn are other ones.

    Args:
        stored: The training images.
        augment: Makes the views.
        batch_size: Samples a batch and process.
        views: Views of each sample, 1 or the number of peers.
        seed: As in `TrainingLoader`.
        epoch: As in `TrainingLoader`.
        rank: This process, in 0..world-1.
        world: Number of processes.
        drop_last: Leave out a last batch that is smaller than `batch_size`.
        workers: Worker processes; 0 makes the batches in this process.
        pin_memory: Put batches into page-locked memory, for a faster copy to a CUDA device.
    """

    def __init__(
        self,
        stored: StoredImages,
        augment: CropFlip,
        *,
        batch_size: int,
        views: int = 1,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(TrainingOrder(len(stored), batch_size, rank, world, drop_last), seed, epoch)
        self.dataset_in_workers = _TrainingBatches(stored, augment, views)
        self.workers = workers
        self.pin_memory = pin_memory
        self._pool = self._new_pool()

    def _new_pool(self) -> _WorkerPool:
        return _WorkerPool(self.dataset_in_workers, self.workers, self.pin_memory)

    def _make(self, batches: Sequence[Tensor], first: int, seed: int, *labels: Label) -> Iterator[Batch]:
        # The initialisation gets workers of its own: two passes at once would steal each other's batches.
        pool = self._new_pool() if labels[0] == "init" else self._pool
        return pool.make([Request(batch, seed, labels) for batch in batches])


class WorkerEvaluationLoader:
    """Evaluation batches, in order, read in worker processes.

    Arguments: as in `DeviceEvaluationLoader` and `WorkerLoader`.
    """

    def __init__(
        self,
        stored: StoredImages,
        normalize: Normalize,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.batches = evaluation_batches(len(stored), batch_size, rank, world)
        self._pool = _WorkerPool(_EvaluationBatches(stored, normalize), workers, pin_memory)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return self._pool.make([Request(batch, 0, ()) for batch in self.batches])
