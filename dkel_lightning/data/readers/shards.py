"""Images in shards of litdata, on a disk or in object storage: each is read where it is used, and nothing is unpacked.

The order of the samples and their augmentation are ours, functions of seed, epoch and index, so a resume within an
epoch is exact as with any other data; litdata finds sample i, in a file that is mapped or by a request for its bytes.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dkel_lightning.data.files.checks import reading
from dkel_lightning.data.files.decode import encoded_images
from dkel_lightning.data.imageset import ImageSet
from dkel_lightning.data.readers.image_folder import image_bytes, listed
from dkel_lightning.data.readers.imagenet import MARGIN, ImageNetDataModule
from dkel_lightning.data.registry import register_data
from dkel_lightning.errors import DataError
from dkel_lightning.runtime.packages import need
from dkel_lightning.runtime.texts import first_line

LABELS = "labels"
"""Of the shards beside the splits': one sample, an .npz of the classes' names and of each split's labels."""


class Shards:
    """Samples by their number, each the bytes that were written.

    What is opened belongs to one process: a worker opens it anew.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._opened: tuple[int, Any] | None = None

    def __getitem__(self, index: int) -> bytes:
        try:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), self._open()
            sample = self._opened[1][index]
        except Exception as error:  # a disk and every object storage fail in their own ways
            raise DataError(
                f"Sample {index} of the shards in {self.place} cannot be read ({first_line(error)}): see that they "
                "are whole, and that you may read them."
            ) from error
        if not isinstance(sample, bytes | memoryview):
            kind = type(sample).__name__
            raise DataError(f"Sample {index} of {self.place} is a {kind}, no encoded image: see write_shards.")
        return bytes(sample)

    def _open(self) -> Any:
        litdata = needed()
        # Of a stranger's shards nothing is unpickled: what says that it is to be comes as bytes, as all that we write.
        serializers = importlib.import_module("litdata.streaming.serializers")
        plain = dict.fromkeys(serializers._SERIALIZERS, serializers.BytesSerializer())
        return litdata.StreamingDataset(self.place, serializers=plain)

    def named(self, index: int) -> tuple[bytes, str]:
        """Return an image as it was written, and what to call it."""
        return self[index], f"image {index} of {self.place}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


@register_data("shards")
class ShardsDataModule(ImageNetDataModule):
    """What `write_shards` has written, in a folder or at an address of object storage such as `s3://bucket/imagenet`.

    Views and evaluation are those of `ImageNetDataModule`; so are the arguments.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        needed()
        # As it was given: an address is no path.
        self._address = str(args[0] if args else kwargs.get("root", "data")).rstrip("/")

    def read(self) -> ImageSet:
        """Read the labels; no image is opened."""
        if "://" not in self._address:
            self._address = str(Path(self._address).expanduser())
        table = Shards(f"{self._address}/{LABELS}")[0]
        try:
            with np.load(io.BytesIO(table), allow_pickle=False) as arrays:
                labels = {name: np.asarray(arrays[name]) for name in arrays.files}
            classes = tuple(map(str, labels.pop("classes")))
            images = {
                name: encoded_images(of, self.image_size, Shards(f"{self._address}/{name}").named, MARGIN)
                for name, of in labels.items()
            }
            return ImageSet(images["train"], images["test"], classes, images.get("val"))
        except (KeyError, ValueError, OSError) as error:
            raise DataError(f"{self._address}/{LABELS} is no table of labels ({error}): see write_shards.") from error


def write_shards(source: str | Path, target: str, *, chunk_bytes: int | str = "64MB", workers: int = 1) -> None:
    """Write a folder of images as shards: the files' own bytes, `chunk_bytes` a shard.

    Args:
        source: `train/CLASS/...` beside `test/CLASS/...` or `val/CLASS/...`, as for `data=imagenet`.
        target: a folder, or an address to which litdata can write.
        chunk_bytes: size of a shard.
        workers: processes that read the files.

    Raises:
        ConfigError: litdata is not installed.
        DataError: the folder is not of that form.
    """
    litdata = needed()
    with reading(Path(source)):
        splits, classes = listed(Path(source))
    tables: dict[str, Any] = {"classes": np.asarray(classes)}
    # One task a process, in order; litdata would else leave its way of starting processes to the whole program.
    before = multiprocessing.get_start_method(allow_none=True)
    start = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    settings: dict[str, Any] = {"chunk_bytes": chunk_bytes, "start_method": start, "verbose": False}
    settings |= {"keep_data_ordered": True, "reorder_files": False}
    try:
        for name, listing in splits.items():
            tables[name] = np.asarray(listing.labels, dtype=np.int64)
            # By number: a path given as an input would be taken for a file to fetch.
            read, numbers = partial(_file, tuple(listing.names)), list(range(len(listing.names)))
            litdata.optimize(read, numbers, f"{target}/{name}", num_workers=workers, **settings)
        table = io.BytesIO()
        np.savez(table, **tables)
        litdata.optimize(partial(_given, table.getvalue()), [0], f"{target}/{LABELS}", num_workers=1, **settings)
    finally:
        multiprocessing.set_start_method(before, force=True)


def _file(names: Sequence[str], number: int) -> bytes:
    return image_bytes(Path(names[number]))


def _given(content: bytes, number: int) -> bytes:
    return content


def needed() -> Any:
    """Import litdata.

    Raises:
        ConfigError: it is not installed.
    """
    return need("litdata", "data=shards", "shards")
