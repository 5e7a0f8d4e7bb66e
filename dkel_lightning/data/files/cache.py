"""Decoded images on disk: written once, whole or not at all, then memory-mapped by every process."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.errors import DataError
from dkel_lightning.runtime.atomic_files import text_of

logger = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "dkel_cache"
_ABOUT = "about.json"
# Decoded images that are held at once while a cache is written.
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Listing:
    """A split that is not decoded yet: the name of each image and its class number."""

    names: Sequence[str]
    labels: Sequence[int]


@dataclass(frozen=True)
class Recipe:
    """All that is needed to write a cache.

    `decode` turns a name of a listing into uint8 `[C, H, W]` and is called from several threads. `notes` are kept in
    the cache's `about.json` for the reader's information.
    """

    splits: Mapping[str, Listing]
    class_names: Sequence[str]
    shape: tuple[int, int, int]
    decode: Callable[[str], NDArray[np.uint8]]
    notes: Mapping[str, Any] = field(default_factory=dict)


class ImageCache:
    """A folder of `.npy` files whose name contains a hash of what they were made from.

    A source that changes gets a new folder, and the old ones from the same place go once it is written. A folder is
    written under another name and renamed when complete, so that one that exists is whole.

    Args:
        folder: Where caches lie.
        kind: First part of the folder's name: the data set and how it was decoded.
        source: What identifies the files it was made from; not their place, so that a set may be moved with its cache.
        origin: Where they lie.
    """

    def __init__(self, folder: Path, kind: str, source: Mapping[str, str | int], origin: Path) -> None:
        self.folder = folder
        self.kind = kind
        self.origin = str(origin.resolve())
        self.source = {"format": FORMAT, **source}
        key = hashlib.sha256(json.dumps(self.source, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"{kind}-{key}"

    def load(self) -> ImageSet | None:
        """Return the memory-mapped images, or None if there is no cache of this source or it is damaged."""
        try:
            about = _about(self.path)
            if about["source"] != self.source:
                return None
            if any((self.path / name).stat().st_size != size for name, size in about["files"].items()):
                logger.warning("the image cache %s is damaged", self.path)
                return None
            splits = {name: self._split(name) for name in about["splits"]}
            return ImageSet(class_names=tuple(about["class_names"]), **splits)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read(self, source: Path) -> ImageSet:
        """Return the memory-mapped images of `source`.

        Raises:
            DataError: There is no up-to-date cache.
        """
        data = self.load()
        if data is None:
            raise DataError(f"{source} has no up-to-date image cache {self.path}: call prepare_data() first")
        return data

    def _split(self, name: str) -> Images:
        images, labels = (self.path / f"{name}_{what}.npy" for what in ("images", "labels"))
        if not (images.is_file() and labels.is_file()):  # a pipe would be waited for
            raise FileNotFoundError(images)
        return Images(np.load(images, mmap_mode="r", allow_pickle=False), np.load(labels, allow_pickle=False))

    def write(self, recipe: Recipe) -> None:
        """Decode all images and write the cache. The caller holds the lock of the folder.

        Raises:
            DataError: An image cannot be decoded, or the cache cannot be written; nothing half-written remains.
        """
        temporary = self.folder / f".{self.kind}.{os.getpid()}.tmp"
        for leftover in self.folder.glob(f".{self.kind}.*.tmp"):  # of a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            self._write_files(temporary, recipe)
            shutil.rmtree(self.path, ignore_errors=True)
            temporary.rename(self.path)
        except OSError as error:
            images = sum(len(split.names) for split in recipe.splits.values())
            needed = images * math.prod(recipe.shape) / 2**20
            raise DataError(
                f"the image cache {self.path} cannot be written ({error}): it needs {needed:.0f} MiB of free disk; "
                "make room, or set cache_dir to a folder with room"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self.folder.glob(f"{self.kind}-{'[0-9a-f]' * 16}"):
            if old != self.path and self._is_outdated(old):
                shutil.rmtree(old, ignore_errors=True)

    def _is_outdated(self, path: Path) -> bool:
        try:
            return bool(_about(path)["origin"] == self.origin)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _write_files(self, folder: Path, recipe: Recipe) -> None:
        for name, listing in recipe.splits.items():
            _write_images(folder / f"{name}_images.npy", name, listing.names, recipe)
            np.save(folder / f"{name}_labels.npy", np.asarray(listing.labels, dtype=np.int64))
        about = {
            "source": self.source,
            "origin": self.origin,
            "class_names": list(recipe.class_names),
            "splits": list(recipe.splits),
            "images": {name: len(listing.names) for name, listing in recipe.splits.items()},
            "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
            "notes": dict(recipe.notes),
        }
        (folder / _ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")


def _about(path: Path) -> dict[str, Any]:
    return json.loads(text_of(path / _ABOUT))


def _write_images(path: Path, split: str, names: Sequence[str], recipe: Recipe) -> None:
    # Plain writes: filling a memory map on a full disk kills the process instead of raising.
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *recipe.shape)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for decoded in _decoded_chunks(split, names, recipe):
            for image in decoded:
                file.write(np.ascontiguousarray(image).data)


def _decoded_chunks(split: str, names: Sequence[str], recipe: Recipe) -> Iterator[list[NDArray[np.uint8]]]:
    console = Console(file=sys.stderr)
    threads = min(8, os.cpu_count() or 1)
    chunk = max(threads, _CHUNK_BYTES // math.prod(recipe.shape))
    starts = range(0, len(names), chunk)
    with ThreadPoolExecutor(threads) as pool:
        for start in track(starts, f"decoding {split} images", console=console, disable=not console.is_terminal):
            yield list(pool.map(recipe.decode, names[start : start + chunk]))
