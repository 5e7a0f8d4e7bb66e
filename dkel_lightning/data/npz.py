"""One `.npz` file in the MedMNIST layout."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkel_lightning.data.imageset import Images, ImageSet, check_image_set
from dkel_lightning.errors import DataError

_LAYOUT = (
    "train_images, train_labels, test_images, test_labels and, if you like, val_images, val_labels, class_names; "
    "images uint8 [N,H,W] or [N,H,W,C], labels integers [N] or [N,1]"
)
_MOST_CHANNELS = 4


def read_npz(path: Path) -> ImageSet:
    """Read images and labels; grey images keep their one channel.

    Nothing is unpickled, so a file from a stranger cannot run code.

    Raises:
        DataError: The file, or an array in it, is missing, damaged or not what the layout promises.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; set root to an .npz file that holds {_LAYOUT}")
    try:
        file = np.load(path, allow_pickle=False)
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is torn or no .npz file ({error}); write it again with numpy.savez") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise DataError(f"{path} holds a single array; write an .npz file with {_LAYOUT}")
    with file:
        return _read(file, path)


def _read(file: Any, path: Path) -> ImageSet:
    missing = [f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")]
    missing = [key for key in missing if key not in file]
    if ("val_images" in file) != ("val_labels" in file):
        missing.append("val_labels" if "val_images" in file else "val_images")
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it needs {_LAYOUT}")
    train, test = _split(file, "train", path), _split(file, "test", path)
    val = _split(file, "val", path) if "val_images" in file else None
    data = ImageSet(train=train, test=test, val=val, class_names=_class_names(file, train, path))
    check_image_set(data, str(path))
    return data


def _split(file: Any, split: str, path: Path) -> Images:
    images = _images(_array(file, f"{split}_images", path), f"{path}: {split}_images")
    labels = _labels(_array(file, f"{split}_labels", path), f"{path}: {split}_labels")
    if len(images) != len(labels):
        raise DataError(f"{path}: {split}_images holds {len(images)} images but {split}_labels {len(labels)} labels")
    return Images(images, labels)


def _array(file: Any, key: str, path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = file[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(
            f"{path}: {key} cannot be read ({error}); store it as a plain array, and write the file again if it is torn"
        ) from error
    return array


def _images(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        nan = " and contains NaN" if array.dtype.kind == "f" and bool(np.isnan(array).any()) else ""
        raise DataError(f"{name} is {array.dtype}{nan}; store grey or colour values 0..255 as uint8")
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
        nan = " and contains NaN" if array.dtype.kind == "f" and bool(np.isnan(array).any()) else ""
        raise DataError(f"{name} is {array.dtype}{nan}; store class numbers 0, 1, ... as integers")
    if len(array) and int(array.min()) < 0:
        raise DataError(f"{name} contains {int(array.min())}; number the classes from 0")
    return array.astype(np.int64)


def _class_names(file: Any, train: Images, path: Path) -> tuple[str, ...]:
    if "class_names" not in file:
        return tuple(str(label) for label in range(int(train.labels.max()) + 1))
    names = _array(file, "class_names", path)
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise DataError(f"{path}: class_names is {names.dtype} {names.shape}; store a one-dimensional array of strings")
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names)
