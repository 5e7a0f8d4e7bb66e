"""One `.npz` file in the MedMNIST layout."""

from __future__ import annotations

import math
import tokenize
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.data.files.checks import BROKEN_ZIP, check_members, open_member, reading, refuse_lookalikes
from dkel_lightning.data.imageset import Images, ImageSet
from dkel_lightning.data.registry import register_data
from dkel_lightning.data.residency import free_host_memory
from dkel_lightning.errors import DataError

_LAYOUT = (
    "train_images, train_labels, test_images, test_labels and, if you like, val_images, val_labels, class_names; "
    "images uint8 [N,H,W] or [N,H,W,C], labels integers [N] or [N,1]"
)
_MOST_CHANNELS = 4
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class _Arrays:
    """The arrays of an open `.npz`, read without trust in what it says of their size.

    `numpy.load` would reserve what an array's header claims, before it looks at what is there.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        check_members(archive, path)
        self._archive = archive
        self._path = path
        self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        # Twice: colour images are copied to put their channels first.
        self._most = free_host_memory() // 2

    def image_set(self) -> ImageSet:
        """Read all splits."""
        missing = [f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")]
        missing = [key for key in missing if key not in self._members]
        if ("val_images" in self._members) != ("val_labels" in self._members):
            missing.append("val_labels" if "val_images" in self._members else "val_images")
        if missing:
            raise DataError(f"{self._path} lacks {', '.join(missing)}; it needs {_LAYOUT}")
        self._check_sizes()
        train, test = self._split("train"), self._split("test")
        val = self._split("val") if "val_images" in self._members else None
        return ImageSet(train=train, test=test, val=val, class_names=self._class_names(train))

    def _check_sizes(self) -> None:
        total = sum(info.file_size for info in self._members.values())
        if total > self._most:
            raise DataError(
                f"{self._path} unpacks to {total >> 20} MiB, more than half of the free memory ({self._most >> 20} "
                "MiB): an .npz is read whole. Use data=image_folder, which is not, or get the file from a place that "
                "you trust"
            )

    def _split(self, split: str) -> Images:
        images = _images(self._array(f"{split}_images"), f"{self._path}: {split}_images")
        return Images(images, _labels(self._array(f"{split}_labels"), f"{self._path}: {split}_labels"))

    def _array(self, key: str) -> NDArray[Any]:
        info = self._members[key]
        try:
            with open_member(self._archive, info, self._path, self._most) as member:
                self._check_header(member, key, info.file_size)
            with open_member(self._archive, info, self._path, self._most) as member:
                array: NDArray[Any] = npy.read_array(member, allow_pickle=False)
                member.read(1)  # to the end, where the checksum is
        except (ValueError, tokenize.TokenError, *BROKEN_ZIP) as error:  # the former two of headers
            raise DataError(
                f"{self._path}: {key} cannot be read ({error}); store it as a plain array, and write the file again if "
                "it is torn"
            ) from error
        return array

    def _check_header(self, member: Any, key: str, size: int) -> None:
        version = npy.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the format is unknown")
        shape, _, dtype = _HEADERS[version](member)
        claimed, there = math.prod(shape) * dtype.itemsize, size - member.tell()
        # What objects are pickled to has any size; they are refused when they are read.
        if claimed != there and not dtype.hasobject:
            raise ValueError(f"its header claims {claimed} bytes, and {there} are there")

    def _class_names(self, train: Images) -> tuple[str, ...]:
        if "class_names" not in self._members:
            labels = np.unique(train.labels)
            if len(labels) <= labels[-1]:
                gap = int(np.flatnonzero(labels != np.arange(len(labels)))[0])
                raise DataError(
                    f"{self._path}: no training image has the label {gap}, and the labels go up to {labels[-1]}; "
                    f"number the {len(labels)} classes 0 to {len(labels) - 1} without a gap (numpy.unique(labels, "
                    "return_inverse=True)[1] does), or name all classes by class_names"
                )
            return tuple(map(str, labels.tolist()))
        names = self._array("class_names")
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise DataError(
                f"{self._path}: class_names is {names.dtype} {names.shape}; store a one-dimensional array of strings"
            )
        if not 0 < len(names) <= len(train):  # an array of empty strings claims any length in no bytes
            raise DataError(
                f"{self._path}: class_names holds {len(names)} names for {len(train)} training images; name each class "
                "of which there is an image"
            )
        found = tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)
        refuse_lookalikes(found, f"{self._path}: class_names")
        return found


def _images(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise DataError(f"{name} is {_kind(array)}; store grey or colour values 0..255 as uint8")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in range(1, _MOST_CHANNELS + 1):
        raise DataError(
            f"{name} has the shape {array.shape}; store [N,H,W] or [N,H,W,C] with C at most {_MOST_CHANNELS}"
        )
    if 0 in array.shape:
        raise DataError(f"{name} is empty (shape {array.shape}); every split needs at least one image")
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def _labels(array: NDArray[Any], name: str) -> NDArray[np.int64]:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{name} has the shape {array.shape}; store one class number an image, [N] or [N,1]")
    if array.dtype.kind not in "iu":
        raise DataError(f"{name} is {_kind(array)}; store class numbers 0, 1, ... as integers")
    if len(array) == 0:
        raise DataError(f"{name} is empty; every split needs at least one label")
    for wrong in (int(array.min()), int(array.max())):
        if not 0 <= wrong <= np.iinfo(np.int64).max:
            raise DataError(f"{name} contains {wrong}; number the classes from 0")
    return array.astype(np.int64)


def _kind(array: NDArray[Any]) -> str:
    nan = array.dtype.kind == "f" and bool(np.isnan(array).any())
    return f"{array.dtype} and contains NaN" if nan else str(array.dtype)


@register_data("npz")
class NpzDataModule(ImageDataModule):
    """An `.npz` file in the MedMNIST layout; `root` is its path. Arguments: `ImageDataModule`.

    Not mirrored unless asked for: what is in the file may be writing, or organs that have a side.
    """

    default_flip = False

    def read(self) -> ImageSet:
        """Read images and labels; grey images keep their one channel.

        Nothing is unpickled, so a file from a stranger cannot run code, and nothing larger than half of the free memory
        is unpacked, nor anything that is not as large as it claims.

        Raises:
            DataError: The file, or an array in it, is missing, damaged or not what the layout promises.
        """
        path = self.root
        with reading(path):
            if not path.is_file():
                raise DataError(f"{path} is not a file; set root to an .npz file that holds {_LAYOUT}")
            with path.open("rb") as file:
                if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                    raise DataError(f"{path} holds a single array; write an .npz file with {_LAYOUT}")
                try:
                    archive = zipfile.ZipFile(file)
                except BROKEN_ZIP as error:
                    raise DataError(
                        f"{path} is torn or no .npz file ({error}); write it again with numpy.savez"
                    ) from error
                with archive:
                    return _Arrays(archive, path).image_set()
