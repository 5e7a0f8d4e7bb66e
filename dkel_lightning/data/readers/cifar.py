"""CIFAR-10 and CIFAR-100: torchvision knows and reads their files, which are fetched and unpacked here."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.files.checks import reading
from dkel_lightning.data.files.download import fetch, taking_turns
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.data.registry import register_data
from dkel_lightning.errors import DataError
from dkel_lightning.runtime.atomic_files import digest


def _split(dataset: Any) -> Images:
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2), dtype=np.uint8)
    return Images(images, np.asarray(dataset.targets, dtype=np.int64))


def _unpack(official: Any, root: Path) -> None:
    """Unpack the official archive: its md5 was found to be right, so nothing in it is anybody else's."""
    try:
        with tarfile.open(root / official.filename) as tar:
            tar.extractall(root, filter="data")
    except OSError as error:
        raise DataError(
            f"{root / official.filename} cannot be unpacked ({error}): it needs 186 MB of free disk; make room, or set "
            "data.root to a folder with room"
        ) from error


def _faults(official: Any, root: Path) -> Iterator[str]:
    meta = official.meta["filename"], official.meta["md5"]
    for filename, md5 in (*official.train_list, *official.test_list, meta):
        path = root / official.base_folder / filename
        if not path.is_file():
            yield f"{path} is missing"
        elif not _intact(path, md5):
            yield f"{path} is damaged (its md5 is not {md5})"


def _intact(path: Path, md5: str) -> bool:
    return path.is_file() and digest(path, "md5") == md5


def _cure(official: Any, root: Path) -> str:
    return (
        f"Put {official.filename} ({official.url}, md5 {official.tgz_md5}) into {root}, or set data.download=true on a "
        "machine with a network"
    )


class _CIFARDataModule(ImageDataModule):
    _name: ClassVar[Literal["CIFAR10", "CIFAR100"]]

    @property
    def _official(self) -> Any:
        # Imported on use: torchvision takes seconds.
        return getattr(import_module("torchvision.datasets"), self._name)

    def prepare_data(self) -> None:
        """Download the official archive into `root` unless its files are there, and unpack it.

        An intact archive found there is unpacked even with `download=False`: that needs no network.

        Raises:
            DataError: Files are missing or damaged and cannot be had.
        """
        official, root = self._official, self.root
        archive = root / official.filename
        with reading(root):
            faults = list(_faults(official, root))
            if not faults:
                return
            if not self.download and not _intact(archive, official.tgz_md5):
                fault = f"{archive} is damaged (its md5 is not {official.tgz_md5})" if archive.exists() else faults[0]
                raise DataError(f"{self._name}: {fault}. {_cure(official, root)}")
        with taking_turns(root, self._name.lower()), reading(root):
            if not list(_faults(official, root)):
                return  # another process was faster
            if not _intact(archive, official.tgz_md5):
                fetch(official.url, archive, official.tgz_md5)
            _unpack(official, root)

    def read(self) -> ImageSet:
        """Read the official 50,000 training and 10,000 test images `[3, 32, 32]`.

        Raises:
            DataError: Files are missing or damaged.
        """
        official, root = self._official, self.root
        try:
            train, test = official(root, train=True), official(root, train=False)  # which compare the md5 of each file
        except (RuntimeError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
            with reading(root):
                fault = next(_faults(official, root), f"{root / official.base_folder} cannot be read ({error})")
            raise DataError(f"{self._name}: {fault}. {_cure(official, root)}") from error
        return ImageSet(train=_split(train), test=_split(test), class_names=tuple(train.classes))


@register_data("cifar10")
class CIFAR10DataModule(_CIFARDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images `[3, 32, 32]`. Arguments: `ImageDataModule`."""

    _name = "CIFAR10"
    default_mean = (0.4914, 0.4822, 0.4465)
    default_std = (0.2470, 0.2435, 0.2616)


@register_data("cifar100")
class CIFAR100DataModule(_CIFARDataModule):
    """CIFAR-100: 50,000 training and 10,000 test images `[3, 32, 32]`. Arguments: `ImageDataModule`."""

    _name = "CIFAR100"
    default_mean = (0.5071, 0.4866, 0.4409)
    default_std = (0.2675, 0.2565, 0.2761)
