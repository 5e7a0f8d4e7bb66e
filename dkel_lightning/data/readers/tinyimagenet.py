"""TinyImageNet from its official zip, or from the folder that the zip unpacks to."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.files.cache import FOLDER as CACHE_FOLDER
from dkel_lightning.data.files.cache import ImageCache, Listing, Recipe
from dkel_lightning.data.files.checks import BROKEN_ZIP, check_members, file_bytes, open_member, reading, regular_files
from dkel_lightning.data.files.decode import decode_exact
from dkel_lightning.data.files.download import fetch, taking_turns
from dkel_lightning.data.imageset import ImageSet
from dkel_lightning.data.readers.image_folder import folder_fingerprint
from dkel_lightning.data.registry import register_data
from dkel_lightning.errors import DataError
from dkel_lightning.runtime.atomic_files import digest

logger = logging.getLogger(__name__)

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"
SIZE = 64
# The largest official image has 15 kB, words.txt has 2.7 MB.
_MOST_IMAGE_BYTES = 1 << 20
_MOST_TEXT_BYTES = 16 << 20
_BROKEN = (*BROKEN_ZIP, OSError)


class Files(Protocol):
    """The files of the data set, by their names relative to `tiny-imagenet-200`, wherever they lie."""

    where: Path

    def names(self) -> set[str]:
        """Return the names of all regular files, with forward slashes."""

    def read(self, name: str, most: int) -> bytes:
        """Return a file's content; raise DataError if it is damaged or holds more than `most` bytes."""


class ZipFiles:
    """Files in a zip, read by exact name without unpacking it.

    Raises:
        DataError: It holds what no official zip does: a link, a name twice, or one that leads elsewhere.
    """

    def __init__(self, where: Path, archive: zipfile.ZipFile) -> None:
        self.where = where
        self._archive = archive
        check_members(archive, where)
        regular = [info for info in archive.infolist() if not info.is_dir()]
        # It may hold the files of the folder, or the folder.
        prefix = "" if any(info.filename == "wnids.txt" for info in regular) else f"{FOLDER}/"
        self._members = {i.filename.removeprefix(prefix): i for i in regular if i.filename.startswith(prefix)}

    def names(self) -> set[str]:
        """Return the names of all regular members."""
        return set(self._members)

    def read(self, name: str, most: int) -> bytes:
        """Return a member's content."""
        info = self._members[name]
        try:
            with open_member(self._archive, info, self.where, most) as member:
                return member.read(most + 1)
        except _BROKEN as error:
            raise DataError(f"{self.where}: {info.filename} is damaged ({error}). {_zip_cure(self.where)}") from error


class FolderFiles:
    """Files in a folder."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def names(self) -> set[str]:
        """Return the names of all files."""
        found = regular_files(self.where, skip=CACHE_FOLDER)
        return {path.relative_to(self.where).as_posix() for path, _ in found}

    def read(self, name: str, most: int) -> bytes:
        """Return a file's content."""
        return file_bytes(self.where / name, most)


def find_tinyimagenet(root: Path) -> Path | None:
    """Return the zip or folder that `root` is or holds; the zip first, since a half-unpacked folder looks complete."""
    for path in (root, root / f"{FOLDER}.zip"):
        if path.is_file():
            return path
    for path in (root, root / FOLDER):
        if (path / "wnids.txt").is_file():
            return path
    return None


def _missing(root: Path) -> DataError:
    return DataError(
        f"no TinyImageNet at {root}: put {FOLDER}.zip ({URL}, 237 MB, md5 {MD5}) or the folder {FOLDER} there, "
        "or set data.download=true on a machine with a network"
    )


def _zip_cure(path: Path) -> str:
    return f"Delete {path} and get it again ({URL}, md5 {MD5}), or set data.download=true"


@contextmanager
def _files(source: Path) -> Iterator[Files]:
    if source.is_dir():
        yield FolderFiles(source)
        return
    try:
        with reading(source):
            archive = zipfile.ZipFile(source)
    except BROKEN_ZIP as error:
        raise DataError(f"{source} is torn or no zip ({error}). {_zip_cure(source)}") from error
    with archive:
        yield ZipFiles(source, archive)


def _recipe(files: Files) -> Recipe:
    names = files.names()
    wnids = _text(files, "wnids.txt", names).split()
    if not wnids or len(set(wnids)) != len(wnids):
        raise DataError(f"{files.where}: wnids.txt must name every class once, but is empty or names one twice")
    number = {wnid: index for index, wnid in enumerate(wnids)}
    words = _text(files, "words.txt", names) if "words.txt" in names else ""

    def decode(name: str) -> NDArray[np.uint8]:
        return decode_exact(files.read(name, _MOST_IMAGE_BYTES), f"{files.where}: {name}", SIZE)

    splits = {"train": _training(files, names, number), "test": _validation(files, names, number)}
    return Recipe(splits, _class_names(wnids, words), (3, SIZE, SIZE), decode, _notes(files, splits))


def _training(files: Files, names: set[str], number: dict[str, int]) -> Listing:
    by_class: dict[str, list[str]] = {wnid: [] for wnid in number}
    for name in names:
        match PurePosixPath(name).parts:
            case ("train", wnid, "images", image) if wnid in by_class and image.lower().endswith(".jpeg"):
                by_class[wnid].append(name)
    for wnid, members in by_class.items():
        if not members:
            raise DataError(f"{files.where}: no image in train/{wnid}/images, though wnids.txt names this class")
    ordered = [(name, number[wnid]) for wnid, members in by_class.items() for name in sorted(members)]
    return Listing([name for name, _ in ordered], [label for _, label in ordered])


def _validation(files: Files, names: set[str], number: dict[str, int]) -> Listing:
    annotations = "val/val_annotations.txt"
    listed, labels = [], []
    seen: set[str] = set()
    for count, line in enumerate(_text(files, annotations, names).splitlines(), start=1):
        image, wnid = (*line.split("\t"), "", "")[:2]
        where = f"{files.where}: line {count} of {annotations}"
        if wnid not in number:
            raise DataError(f"{where} names the class {wnid!r}, which wnids.txt does not")
        # Only names that were found there are read, so an annotation cannot point elsewhere.
        if f"val/images/{image}" not in names:
            raise DataError(f"{where} names the image {image!r}, which is not in val/images")
        if image in seen:
            raise DataError(f"{where} names the image {image!r} a second time")
        seen.add(image)
        listed.append(f"val/images/{image}")
        labels.append(number[wnid])
    if not listed:
        raise DataError(f"{files.where}: {annotations} names no image")
    return Listing(listed, labels)


def _text(files: Files, name: str, names: set[str]) -> str:
    if name not in names:
        raise DataError(
            f"{files.where} lacks {name}, so it is not the official layout of TinyImageNet; get {URL} (md5 {MD5}), or "
            "read your own layout with the image_folder data set"
        )
    return files.read(name, _MOST_TEXT_BYTES).decode("utf-8", "replace")


def _class_names(wnids: list[str], words: str) -> list[str]:
    meaning = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    short = [meaning.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return short if len(set(short)) == len(short) else [meaning.get(wnid, wnid).strip() for wnid in wnids]


def _notes(files: Files, splits: dict[str, Listing]) -> dict[str, str | bool]:
    count = f"{len(splits['train'].names)} training and {len(splits['test'].names)} test images"
    if files.where.is_dir():
        logger.info("%s is a folder, so its images cannot be checked against the official zip: %s", files.where, count)
        return {"official": False}
    md5 = digest(files.where, "md5")
    if md5 != MD5:
        logger.warning("%s is not the official zip (md5 %s, not %s): %s", files.where, md5, MD5, count)
    return {"md5": md5, "official": md5 == MD5}


@register_data("tinyimagenet")
class TinyImageNetDataModule(ImageDataModule):
    """TinyImageNet: 100,000 training and 10,000 test images `[3, 64, 64]` of 200 classes.

    The test set is the official validation set, since the official test set has no labels. `root` is, or holds,
    `tiny-imagenet-200.zip` or the unpacked folder.

    Args:
        *args: As in `ImageDataModule`.
        cache_dir: Folder of the decoded images; None: beside the zip or folder.
        **kwargs: As in `ImageDataModule`.
    """

    default_mean = (0.4802, 0.4481, 0.3975)
    default_std = (0.2302, 0.2265, 0.2262)

    def __init__(self, *args: Any, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()

    def prepare_data(self) -> None:
        """Download the zip if there is nothing and that is allowed, and decode it into the cache unless up to date.

        Raises:
            DataError: The data are missing, torn, or not what they should be; the message names the file.
        """
        root = self.root
        with reading(root):
            source = find_tinyimagenet(root)
            if source is None and (not self.download or root.suffix == ".zip"):
                raise _missing(root)
            if source is not None and self._cache(source).load() is not None:
                return  # without the lock: a folder that cannot be written to may hold a good cache
        with taking_turns(self._cache_folder, "tinyimagenet"), reading(root):
            source = find_tinyimagenet(root)
            if source is None:
                source = root / f"{FOLDER}.zip"
                fetch(URL, source, MD5)
            cache = self._cache(source)
            if cache.load() is None:
                with _files(source) as files:
                    cache.write(_recipe(files))

    def read(self) -> ImageSet:
        """Read the cached training images and, as the test split, the official validation images `[3, 64, 64]`.

        Raises:
            DataError: There is no up-to-date cache.
        """
        with reading(self.root):
            source = find_tinyimagenet(self.root)
            if source is None:
                raise _missing(self.root)
            cache = self._cache(source)
        return cache.read(source)

    @property
    def _cache_folder(self) -> Path:
        return self.cache_dir or (self.root.parent if self.root.suffix == ".zip" else self.root) / CACHE_FOLDER

    def _cache(self, source: Path) -> ImageCache:
        status = source.stat()
        of_zip: dict[str, str | int] = {"kind": "zip", "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        fingerprint = folder_fingerprint(source) if source.is_dir() else of_zip
        return ImageCache(self._cache_folder, "tinyimagenet", fingerprint, source)
