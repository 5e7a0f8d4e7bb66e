"""A folder of images: `train/<class>/...` beside `test/<class>/...` or `val/<class>/...`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.decode import CACHE_FOLDER, SUFFIXES, Cache
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.data.registry import register_data
from dkel_lightning.errors import DataError


class Listing(NamedTuple):
    """Image files of a split and their class numbers."""

    files: Sequence[str]
    labels: Sequence[int]


def list_images(root: Path) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """List the image files of each split below `root`, and the classes, in alphabetical order."""
    splits = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "train" not in splits or len(splits) == 1:
        raise DataError(
            f"data.root={root} must be a folder that holds train/<class>/ and test/<class>/ or val/<class>/, and holds "
            f"{', '.join(splits) or 'none of them'}"
        )
    if "test" not in splits:
        splits["test"] = splits.pop("val")
    classes = _classes(splits["train"])
    listings = {}
    for split, folder in splits.items():
        if different := sorted(set(_classes(folder)) ^ set(classes)):
            raise DataError(
                f"{folder} and {splits['train']} must hold the same classes; only one has {', '.join(different[:5])}"
            )
        by_class = [images_in(folder / name) for name in classes]
        labels = np.repeat(np.arange(len(classes)), [len(files) for files in by_class])
        listings[split] = Listing([file for files in by_class for file in files], labels.tolist())
    return listings, tuple(classes)


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: Path) -> list[str]:
    """List the image files below a folder by their suffixes, sorted, without hidden ones."""
    files = sorted(
        f"{place}{os.sep}{name}"
        for place, _, names in os.walk(folder, followlinks=True)
        if f"{os.sep}." not in place.removeprefix(str(folder))
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
    )
    if not files:
        raise DataError(f"{folder} holds no image ({' '.join(sorted(SUFFIXES))}): add some or remove it")
    return files


@register_data("image_folder")
class ImageFolderDataModule(ImageDataModule):
    """A folder of images: `root/train/<class>/...` and `root/test/<class>/...` or `root/val/<class>/...`.

    With both, `val` is the validation split. Every image becomes RGB: its central square, scaled. It is decoded once,
    into a cache.

    Args:
        *args: As in `ImageDataModule`.
        image_size: Height and width of the scaled images, in pixels.
        cache_dir: Folder of the cache; None: `dkel_cache` in `root`.
        **kwargs: As in `ImageDataModule`.
    """

    def __init__(self, *args: Any, image_size: int = 64, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.image_size = image_size
        self.cache_dir = self.root / CACHE_FOLDER if cache_dir is None else Path(cache_dir).expanduser()

    def list_images(self) -> tuple[dict[str, Listing], tuple[str, ...]]:
        """Return the files of each split, and the names of the classes."""
        return list_images(self.root)

    def prepare_data(self) -> None:
        for listing in self.list_images()[0].values():
            self._cache(listing).prepare()

    def read(self) -> ImageSet:
        listings, classes = self.list_images()
        splits = {
            split: Images(self._cache(listing).load(), np.asarray(listing.labels, dtype=np.int64))
            for split, listing in listings.items()
        }
        return ImageSet(splits["train"], splits["test"], classes, splits.get("val"))

    def _cache(self, listing: Listing) -> Cache:
        return Cache(self.cache_dir, listing.files, self.root, self.image_size)
