"""CIFAR-10 and CIFAR-100 through torchvision, with errors that say what to do."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dkel_lightning.data.download import file_md5, taking_turns
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.errors import DataError

Name = Literal["CIFAR10", "CIFAR100"]


def _dataset_class(name: Name) -> Any:
    # Imported on use: torchvision takes seconds.
    return getattr(import_module("torchvision.datasets"), name)


def prepare_cifar(name: Name, root: Path, download: bool) -> None:
    """Make sure that the unpacked files of a CIFAR set lie under `root`, intact.

    An intact archive found there is unpacked even with `download=False`: that needs no network.

    Raises:
        DataError: Files are missing or damaged and cannot be had.
    """
    official = _dataset_class(name)
    faults = list(_faults(official, root))
    if not faults:
        return
    archive = root / official.filename
    if not download and not _intact(archive, official.tgz_md5):
        fault = f"{archive} is damaged (its md5 is not {official.tgz_md5})" if archive.exists() else faults[0]
        raise DataError(f"{name}: {fault}. {_cure(official, root)}")
    with taking_turns(root, name.lower()):
        _download(official, root, name)
    for fault in _faults(official, root):
        raise DataError(f"{name}: {fault}, also after unpacking {archive} again. {_cure(official, root)}")


def read_cifar(name: Name, root: Path) -> ImageSet:
    """Return the official 50,000 training and 10,000 test images `[3, 32, 32]`.

    Raises:
        DataError: Files are missing or damaged.
    """
    official = _dataset_class(name)
    for fault in _faults(official, root):
        raise DataError(f"{name}: {fault}. {_cure(official, root)}")
    try:
        train, test = official(root, train=True), official(root, train=False)
    except (RuntimeError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{name}: {root / official.base_folder} cannot be read ({error}). {_cure(official, root)}"
        ) from error
    return ImageSet(train=_split(train), test=_split(test), class_names=tuple(train.classes))


def _split(dataset: Any) -> Images:
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2), dtype=np.uint8)
    return Images(images, np.asarray(dataset.targets, dtype=np.int64))


def _download(official: Any, root: Path, name: Name) -> None:
    try:
        official(root, download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{name}: downloading {official.url} failed ({error}). {_cure(official, root)}") from error


def _faults(official: Any, root: Path) -> Iterator[str]:
    listed = [*official.train_list, *official.test_list, (official.meta["filename"], official.meta["md5"])]
    for filename, md5 in listed:
        path = root / official.base_folder / filename
        if not path.is_file():
            yield f"{path} is missing"
        elif not _intact(path, md5):
            yield f"{path} is damaged (its md5 is not {md5})"


def _intact(path: Path, md5: str) -> bool:
    return path.is_file() and file_md5(path) == md5


def _cure(official: Any, root: Path) -> str:
    return (
        f"Put {official.filename} ({official.url}, md5 {official.tgz_md5}) into {root}, or set data.download=true on a "
        "machine with a network"
    )
