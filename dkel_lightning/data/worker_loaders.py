"""The same batches made in the worker processes of a torch `DataLoader`, for sets that do not fit on the device."""

from __future__ import annotations

import atexit
import os
import re
import signal
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dkel_lightning.data.augment import CropFlip, Crops
from dkel_lightning.data.batch import Batch
from dkel_lightning.data.device_loaders import Key, Source
from dkel_lightning.data.imageset import StoredImages
from dkel_lightning.errors import DataError

PATIENCE = 600.0
"""Seconds of waiting for a batch, after which its worker hangs."""
TURN = 5.0
"""Seconds of one look: it is made of these, so that time in which this process was stopped does not count."""


class Request(NamedTuple):
    """One batch asked of a worker: which draws, and what keys their augmentation in training.

    The draws are an array, which travels in the request itself: a tensor would need room in shared memory.
    """

    draws: NDArray[np.int64]
    key: Key | None


class _Batches(Dataset["Batch | DataError"]):
    """Answers a request with a batch, or with what kept it from being made or handed over.

    The augmentation is keyed per draw, by (seed, *labels, draw). Images are uint8, to be normalised once they have
    arrived, unless the augmentation makes float32 ones.
    """

    def __init__(self, stored: StoredImages, augment: CropFlip, views: int) -> None:
        self.stored = stored
        self.augment = augment
        self.views = views

    def __getitem__(self, request: Request) -> Batch | DataError:
        draws = torch.from_numpy(request.draws)
        indices = draws % len(self.stored)
        try:
            parts = self.make(indices, draws, request.key), self.stored.labels[indices], indices
        except DataError as error:
            return error  # raised in a worker, torch would wrap it in its traceback
        if get_worker_info() is None:
            return Batch(*parts)
        try:
            # The queue would do so in a thread whose errors nobody hears: the batch would be waited for in vain.
            return Batch(*(part.share_memory_() for part in parts))  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            for left in re.findall("</(torch_[^>/]+)>", str(error)):
                Path("/dev/shm", left).unlink(missing_ok=True)
            size = sum(part.numel() * part.element_size() for part in parts)
            return DataError(
                f"A worker could not hand over a batch of {size:,} bytes in shared memory ({error}): make it larger "
                "(such as docker run --shm-size=8g), lower data.workers or data.batch_size, or set data.workers=0."
            )

    def make(self, indices: Tensor, draws: Tensor, key: Key | None) -> Tensor:
        """Make the images of the samples `indices` (int64): their views in training, or as an evaluation sees them."""
        if key is None:
            return self.stored.read(indices)
        drawn = [self.augment.draw(key.generator(draw), 1, self.views) for draw in draws.tolist()]
        crops = Crops(*(torch.cat(parts, dim=1) for parts in zip(*drawn, strict=True)))
        return self.augment.apply_in_worker(self.augment.read(self.stored, indices), crops)


class _Requests:
    """The sampler of a `DataLoader` that lives on while the requests change from epoch to epoch."""

    def __init__(self) -> None:
        self.pending: Sequence[Request] = ()

    def __len__(self) -> int:
        return len(self.pending)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.pending)


def _begin(worker: int) -> None:
    """Prepare a worker.

    Ctrl-C and a closed terminal reach the whole process group; the parent still needs its workers to end well. Memory
    is shared by name: for an open file the parent would have to ask the worker, without bound if that is stopped.
    """
    for number in (getattr(signal, name, signal.SIGINT) for name in ("SIGINT", "SIGUSR1")):
        signal.signal(number, signal.SIG_IGN)
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]


def _timed_out(error: RuntimeError) -> bool:
    return str(error).startswith("DataLoader timed out")


_passes: weakref.WeakSet[Any] = weakref.WeakSet()
"""The iterators of torch's whose workers may be alive."""


def _end(batches: Any) -> None:
    """End the workers of an iterator of torch's; one that is stopped obeys only once it goes on."""
    workers = getattr(batches, "_workers", [])
    for worker in workers:
        if worker.is_alive() and hasattr(signal, "SIGCONT"):
            os.kill(worker.pid, signal.SIGCONT)
    if workers:
        batches._shutdown_workers()


@atexit.register
def _end_all() -> None:
    """Leave no stopped worker to Python, which would wait for it without end."""
    for batches in list(_passes):
        _end(batches)


class WorkerImages(Source):
    """Batches read and augmented in worker processes, which each make whole ones and stay alive between passes.

    The augmentation of a sample is keyed by (seed, "augment", epoch, draw), so that it does not depend on the number of
    workers, nor on the number of processes; the draw is the sample's index, unless an epoch draws it again. The crops
    drawn are other ones than those of `DeviceImages`.

    Pixels travel as uint8, in page-locked memory where that is for a CUDA device, and are normalised there.

    Args:
        stored: The images.
        augment: Makes the views.
        views: Views of each sample, 1 or the number of peers.
        workers: Worker processes; 0 makes the batches in this process.
        device: Where the images are wanted; labels and indices stay on the CPU.
    """

    loader = "WorkerLoader"

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
        self.batches = _Batches(stored, augment, views)
        self.device = device or torch.device("cpu")
        self._requests = _Requests()
        self._loader: DataLoader[Batch | DataError] = DataLoader(
            self.batches,
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            timeout=TURN if workers else 0,
            # torch seeds workers from the global generator by default, which would move a user's random numbers.
            generator=torch.Generator(),
            worker_init_fn=_begin,
        )

    def apart(self) -> WorkerImages:
        """Give one with workers of its own: two passes at once would steal each other's batches."""
        made = self.batches
        return WorkerImages(made.stored, made.augment, made.views, workers=self._loader.num_workers, device=self.device)

    def make(self, batches: Sequence[Tensor], key: Key | None = None, rank: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            DataError: an image cannot be read, or a worker cannot hand over its batch, or does not answer.
        """
        self._requests.pending = [Request(batch.numpy(), key) for batch in batches]
        answers = self._begun()
        _passes.add(answers)
        while (made := self._next(answers)) is not None:
            if isinstance(made, DataError):
                _end(answers)
                raise made
            yield self._finished(made)

    def _finished(self, batch: Batch) -> Batch:
        views = batch.views.to(self.device, non_blocking=True)
        if views.dtype == torch.uint8:
            views = self.batches.augment.normalize(views)
        return Batch(views, batch.labels, batch.indices)

    def _begun(self) -> Any:
        earlier = self._loader._iterator
        if earlier is None:
            return iter(self._loader)
        # Here torch waits for what workers still make for a pass that was cut short, and cannot be asked a second time.
        earlier._timeout = PATIENCE
        try:
            return iter(self._loader)
        except RuntimeError as error:
            if not _timed_out(error):
                raise
            _end(earlier)
            raise self._hanging() from error
        finally:
            earlier._timeout = TURN

    def _next(self, answers: Iterator[Batch | DataError]) -> Batch | DataError | None:
        for _ in range(round(PATIENCE / TURN)):
            try:
                return next(answers, None)
            except RuntimeError as error:
                if not _timed_out(error):
                    raise
        return self._hanging()

    def _hanging(self) -> DataError:
        return DataError(
            f"The {self._loader.num_workers} workers have made no batch in {PATIENCE:g} seconds: they were stopped, "
            "or the files that they read do not answer. Set data.workers=0 to see where."
        )
