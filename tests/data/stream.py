"""Prepare 200 MB of images and pass through them, each with at most 60 MiB more memory than the process has before.

Run with MALLOC_MMAP_THRESHOLD_=131072: glibc otherwise keeps freed buffers of several MB, up to 100 MiB in a worker,
which says nothing of what is loaded.
"""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dkel_lightning.data import ImageDataModule
from dkel_lightning.data.files.cache import ImageCache, Listing, Recipe
from dkel_lightning.data.imageset import ImageSet

SPARE = 60 << 20
SIDE = 160
IMAGES = 2600
TEST_IMAGES = 100


class StoredDataModule(ImageDataModule):
    """Images in a cache, as the image folder's and TinyImageNet's."""

    def cache(self) -> ImageCache:
        return ImageCache(self.root, "stored", {"images": IMAGES}, self.root)

    def prepare_data(self) -> None:
        if self.cache().load() is None:
            train = Listing([str(k) for k in range(IMAGES)], [k % 10 for k in range(IMAGES)])
            test = Listing(train.names[:TEST_IMAGES], train.labels[:TEST_IMAGES])
            names = [str(k) for k in range(10)]
            self.cache().write(Recipe({"train": train, "test": test}, names, (3, SIDE, SIDE), self.decode))

    @staticmethod
    def decode(name: str) -> NDArray[np.uint8]:
        return np.full((3, SIDE, SIDE), int(name) % 256, np.uint8)

    def read(self) -> ImageSet:
        data = self.cache().load()
        assert data is not None
        return data


def memory_in_use() -> int:
    """Heap and private mappings of this process: not the pages of the mapped cache, which the system takes back."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmData")


def allow_more(spare: int) -> None:
    """Let this process, and each that it starts, take `spare` bytes more than this one has now."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_in_use() + spare, resource.RLIM_INFINITY))


def data_in(folder: str, residency: str) -> StoredDataModule:
    return StoredDataModule(
        folder, batch_size=16, residency=residency, workers=1, selection="paper", padding=0, flip=False
    )


def main(folder: str) -> None:
    torch.set_num_threads(1)
    # A thread reserves 8 MiB for its stack, of which it uses next to nothing.
    threading.stack_size(1 << 20)
    data = data_in(folder, "workers")
    allow_more(SPARE)
    data.prepare_data()
    allow_more(SPARE)
    data.setup()
    seen = 0
    for views, labels, indices in data.train_dataloader():
        assert indices is not None
        assert views.shape[1:] == (1, 3, SIDE, SIDE)
        assert (labels == indices % 10).all()
        seen += len(labels)
    print(f"streamed {seen} training images")
    whole = data_in(folder, "device")
    whole.setup()
    try:
        whole.train_dataloader()
    except (MemoryError, RuntimeError) as error:
        print("loaded whole:", "out of memory" if "allocate" in str(error) else error)


if __name__ == "__main__":
    main(*sys.argv[1:])
