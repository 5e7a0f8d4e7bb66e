"""A folder of images, one folder a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.decode import CACHE_FOLDER, SUFFIXES, Cache
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.errors import DataError


class Listing(NamedTuple):
    """Image files of a split and their class numbers."""

    files: Sequence[str]
    labels: Sequence[int]


UNLABELLED = ("unlabelled", "unlabeled")
_LAYOUT = "train/CLASS/, and if there are any test/CLASS/, val/CLASS/ and unlabelled/; or CLASS/ alone"
_SPLIT_LIKE = {"training", "testing", "valid", "validation"}


def list_images(root: Path) -> tuple[dict[str, Listing], tuple[str, ...]]:
    """List the image files of each split below `root`, and the classes, in alphabetical order.

    Images in `unlabelled/` are training images with the label -1. Without `train/`, the subfolders are the classes.
    """
    splits = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if wrong := [folder / name for folder in splits.values() for name in UNLABELLED if (folder / name).is_dir()]:
        raise DataError(f"{wrong[0]} is no class: move it to {root / wrong[0].name}")
    if not splits and root.is_dir():
        splits = {"train": root}
    classes = _classes(splits["train"]) if "train" in splits else []
    if not classes or _SPLIT_LIKE & set(classes):
        raise DataError(
            f"data.root={root} must contain {_LAYOUT}; it contains "
            f"{', '.join(splits.keys() - {'train'} or classes) or 'none of them'}"
        )
    if "val" in splits and "test" not in splits:
        splits["test"] = splits.pop("val")
    listings = {}
    for split, folder in splits.items():
        if different := sorted(set(_classes(folder)) ^ set(classes)):
            raise DataError(
                f"{folder} and {splits['train']} must contain the same classes; only one has {', '.join(different[:5])}"
            )
        by_class = [images_in(folder / name) for name in classes]
        labels = np.repeat(np.arange(len(classes)), [len(files) for files in by_class])
        listings[split] = Listing([file for files in by_class for file in files], labels.tolist())
    for folder in [root / name for name in UNLABELLED if (root / name).is_dir()]:
        more, train = images_in(folder), listings["train"]
        listings["train"] = Listing([*train.files, *more], [*train.labels, *[-1] * len(more)])
    return listings, tuple(classes)


def _classes(folder: Path) -> list[str]:
    others = (*UNLABELLED, CACHE_FOLDER)
    names = [entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name not in others]
    return sorted(name for name in names if not name.startswith("."))


def images_in(folder: Path) -> list[str]:
    """List the image files below a folder by suffix, sorted, without hidden files."""
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist")
    files = sorted(
        f"{place}{os.sep}{name}"
        for place, _, names in os.walk(folder, followlinks=True)
        if f"{os.sep}." not in place.removeprefix(str(folder))
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
    )
    if not files:
        raise DataError(f"{folder} contains no image ({' '.join(sorted(SUFFIXES))}): add some or remove it")
    return files


class ImageFolderDataModule(ImageDataModule):
    """A folder of images: `root/train/<class>/...` and `root/test/<class>/...` or `root/val/<class>/...`.

    With both, `val` is the validation split; with neither, and if the classes are in `root` itself, the share `test` is
    held out. `root/unlabelled/...` holds training images of unknown class. Images are converted to RGB, resized and
    cropped to squares, and decoded once into a cache.

    Attributes:
        broken: The errors of images that were left out, by name.

    Args:
        *args: As in `ImageDataModule`.
        image_size: Height and width of the images, in pixels.
        cache_dir: Folder of the cache; None: `dkel_cache` in `root`.
        skip_broken: Leave out unreadable images instead of raising an error.
        **kwargs: As in `ImageDataModule`.
    """

    def __init__(
        self,
        *args: Any,
        image_size: int = 64,
        cache_dir: str | None = None,
        skip_broken: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.image_size = image_size
        self.cache_dir = self.root / CACHE_FOLDER if cache_dir is None else Path(cache_dir).expanduser()
        self.skip_broken = skip_broken

    def list_images(self) -> tuple[dict[str, Listing], tuple[str, ...]]:
        """Return the files of each split, and the names of the classes."""
        return list_images(self.root)

    def prepare_data(self) -> None:
        caches = [self._cache(listing) for listing in self.list_images()[0].values()]
        broken: dict[str, str] = {}
        for cache in caches:
            cache.prepare()
            broken |= cache.broken()
        if broken and not self.skip_broken:
            few = [f"{name} ({reason})" for name, reason in broken.items()][:3]
            few += [f"and {len(broken) - 3} more"] if len(broken) > 3 else []
            raise DataError(
                f"{len(broken)} of {sum(len(cache.files) for cache in caches)} images in {self.root} cannot be read: "
                f"{'; '.join(few)}. Replace or remove them, or set data.skip_broken=true"
            )

    def read(self) -> ImageSet:
        listings, classes = self.list_images()
        splits = {}
        for split, (files, labels) in listings.items():
            cache = self._cache(Listing(files, labels))
            broken = cache.broken()
            self.broken = {**self.broken, **broken}
            readable = np.array([cache.short(name) not in broken for name in files])
            splits[split] = Images(cache.load(), np.asarray(labels, dtype=np.int64)[readable])
        return ImageSet(splits["train"], splits.get("test"), classes, splits.get("val"))

    def _cache(self, listing: Listing) -> Cache:
        return Cache(self.cache_dir, listing.files, self.root, self.image_size)
