"""A folder of images: `train/<class>/...` beside `test/<class>/...` or `val/<class>/...`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.files.cache import FOLDER as CACHE_FOLDER
from dkel_lightning.data.files.cache import ImageCache, Listing, Recipe
from dkel_lightning.data.files.checks import file_bytes, reading, refuse_lookalikes, regular_files
from dkel_lightning.data.files.decode import decode_to
from dkel_lightning.data.files.download import taking_turns
from dkel_lightning.data.imageset import ImageSet
from dkel_lightning.data.registry import register_data
from dkel_lightning.errors import ConfigError, DataError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MOST_FILE_BYTES = 256 << 20


def folder_fingerprint(*folders: Path) -> dict[str, str | int]:
    """Return the number of all files below some folders, and a hash of their names, sizes and times."""
    files = sorted(
        (path.relative_to(folder.parent).as_posix(), status.st_size, status.st_mtime_ns)
        for folder in folders
        for path, status in regular_files(folder, skip=CACHE_FOLDER)
    )
    # As JSON, which can hold any name that a file may have.
    return {"kind": "folder", "files": len(files), "sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest()}


def _require_train(root: Path) -> None:
    if not (root / "train").is_dir():
        fault = "has no folder train" if root.is_dir() else "is no folder"
        raise DataError(
            f"data.root: {root} {fault}: name the folder that holds train/<class>/ and test/<class>/ or val/<class>/"
        )
    if not (root / "test").is_dir() and not (root / "val").is_dir():
        raise DataError(f"{root} has neither a folder test nor val: put the test images into test/<class>/")


def _folders(root: Path) -> dict[str, str]:
    """Return which folder holds which split."""
    if not (root / "test").is_dir():
        return {"train": "train", "test": "val"}
    return {"train": "train", "test": "test", **({"val": "val"} if (root / "val").is_dir() else {})}


def listed(root: Path) -> tuple[dict[str, Listing], list[str]]:
    """List the image files of each split, and the classes.

    Raises:
        DataError: The layout is not as it should be.
    """
    _require_train(root)
    folders = {split: root / name for split, name in _folders(root).items()}
    classes = _classes(folders["train"])
    for folder in folders.values():
        _require_same_classes(folder, classes)
    return {split: _listing(folder, classes) for split, folder in folders.items()}, classes


def _classes(folder: Path) -> list[str]:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} holds no class: make one folder a class in it, with its images inside")
    refuse_lookalikes(classes, str(folder))
    return classes


def _require_same_classes(folder: Path, classes: list[str]) -> None:
    different = sorted(set(_classes(folder)) ^ set(classes))
    if different:
        shown = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
        raise DataError(f"{folder} and {folder.parent / 'train'} must hold the same classes; only one has {shown}")


def _listing(folder: Path, classes: list[str]) -> Listing:
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(_images(folder / name))
        if not images:
            raise DataError(f"{folder / name} holds no image ({' '.join(sorted(SUFFIXES))}): add some or remove it")
        names += images
        labels += [label] * len(images)
    return Listing(names, labels)


def _images(folder: Path) -> Iterator[str]:
    return (str(path) for path, _ in regular_files(folder) if path.suffix.lower() in SUFFIXES)


def images_in(place: Path) -> list[Path]:
    """List a file, or the image files below a folder by their names' endings, in order.

    Raises:
        DataError: There is no such file or folder, or none in it; or as for `regular_files`.
    """
    with reading(place):
        if not place.is_dir():
            place.stat()
            return [place]
        found = sorted(map(Path, _images(place)))
    if not found:
        raise DataError(f"{place} holds no image ({' '.join(sorted(SUFFIXES))})")
    return found


def image_bytes(path: Path) -> bytes:
    """Read an image file.

    Raises:
        DataError: It cannot be read, or is absurdly large.
    """
    return file_bytes(path, _MOST_FILE_BYTES)


@register_data("image_folder")
class ImageFolderDataModule(ImageDataModule):
    """A folder of images: `root/train/<class>/...` and `root/test/<class>/...` or `root/val/<class>/...`.

    With both, `val` is the validation split. Every image becomes RGB: its central square, scaled; it is decoded once,
    into a cache.

    Args:
        *args: As in `ImageDataModule`.
        image_size: Height and width of the scaled images, in pixels.
        cache_dir: Folder of the cache; None puts it into `root`.
        **kwargs: As in `ImageDataModule`.
    """

    def __init__(self, *args: Any, image_size: int = 64, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if image_size < 1:
            raise ConfigError(f"image_size={image_size} is too small: the least is 1")
        self.image_size = image_size
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def prepare_data(self) -> None:
        """Decode all images into the cache unless that is up to date.

        Raises:
            DataError: The layout is not as it should be, or an image cannot be used; the message names the file.
        """
        cache = self._cache()
        if cache.load() is not None:  # without the lock: a folder that cannot be written to may hold a good cache
            return
        with taking_turns(cache.folder, "image_folder"), reading(self.root):
            if cache.load() is None:
                splits, classes = listed(self.root)
                cache.write(Recipe(splits, classes, (3, self.image_size, self.image_size), self._decode))

    def read(self) -> ImageSet:
        """Read the cached images `[3, image_size, image_size]`.

        Raises:
            DataError: There is no up-to-date cache.
        """
        return self._cache().read(self.root)

    def _cache(self) -> ImageCache:
        with reading(self.root):
            _require_train(self.root)
            fingerprint = folder_fingerprint(*(self.root / name for name in _folders(self.root).values()))
        folder = self.cache_dir or self.root / CACHE_FOLDER
        return ImageCache(folder, f"image_folder-{self.image_size}", fingerprint, self.root)

    def _decode(self, name: str) -> NDArray[np.uint8]:
        return decode_to(image_bytes(Path(name)), name, (3, self.image_size, self.image_size))
