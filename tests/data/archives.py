"""Small data sets in the official layouts, for the tests."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dkel_lightning.data import ImageDataModule

WNIDS = ("n02", "n01", "n03")


def image_bytes(value: int, size: tuple[int, int] = (64, 64), mode: str = "RGB", form: str = "PNG") -> bytes:
    """A one-coloured image; `value` fills every channel."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode)).save(buffer, form)
    return buffer.getvalue()


def tiny_members() -> dict[str, bytes]:
    """TinyImageNet with three classes (in the order n02, n01, n03), two training images each, five validation images.

    Training image k of class c has the value 40 c + k, validation image k the value 200 + k. The files are called
    JPEG but are PNG, to keep the values; one is greyscale.
    """
    members = {
        "wnids.txt": "\n".join(WNIDS).encode() + b"\n",
        "words.txt": b"n01\tfish, a cold one\nn02\tdog\nn03\tcat\n",
    }
    for label, wnid in enumerate(WNIDS):
        for k in range(2):
            mode = "L" if (label, k) == (1, 0) else "RGB"
            members[f"train/{wnid}/images/{wnid}_{k}.JPEG"] = image_bytes(40 * label + k, mode=mode)
        members[f"train/{wnid}/{wnid}_boxes.txt"] = b"ignored"
    for k in range(5):
        members[f"val/images/val_{k}.JPEG"] = image_bytes(200 + k)
    lines = [f"val_{k}.JPEG\t{wnid}\t0\t0\t63\t63" for k, wnid in ((3, "n01"), (0, "n03"), (1, "n02"), (4, "n02"))]
    members["val/val_annotations.txt"] = "\n".join([*lines, "val_2.JPEG\tn01\t1\t2\t3\t4"]).encode()
    return members


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return path


def write_folder(path: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def ready(kind: type[ImageDataModule], root: object, **settings: Any) -> Any:
    """A data module of small images, set up."""
    module = kind(str(root), **{"batch_size": 4, "views": 2, "workers": 0, **settings})
    module.prepare_data()
    module.setup()
    return module


def npz_arrays(count: int = 30, classes: int = 3, shape: tuple[int, ...] = (8, 8)) -> dict[str, NDArray[Any]]:
    random = np.random.RandomState(0)
    arrays: dict[str, NDArray[Any]] = {}
    for split, size in (("train", count), ("test", count // 2)):
        arrays[f"{split}_images"] = random.randint(0, 256, (size, *shape)).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(size) % classes).astype(np.int64)
    return arrays


def fake_cifar(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a small archive in the official layout, and make torchvision accept its md5.

    Pixel (row 0, column 1) of channel c of every image is c + 1, and all else is 0.
    """
    official: Any = getattr(import_module("torchvision.datasets"), name)
    ten = name == "CIFAR10"
    key, folder = ("labels", official.base_folder) if ten else ("fine_labels", official.base_folder)
    files: dict[str, bytes] = {}
    for filename, _ in (*official.train_list, *official.test_list):
        data = np.zeros((10, 3, 32, 32), np.uint8)
        data[:, :, 0, 1] = (1, 2, 3)
        files[filename] = pickle.dumps({"data": data.reshape(10, -1), key: list(range(10))})
    names = {official.meta["key"]: [f"class {index}" for index in range(10)]}
    files[official.meta["filename"]] = pickle.dumps(names)

    def md5(content: bytes) -> str:
        return hashlib.md5(content).hexdigest()

    root.mkdir(parents=True, exist_ok=True)
    archive: Path = root / official.filename
    with tarfile.open(archive, "w:gz") as tar:
        for filename, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{filename}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for listing in ("train_list", "test_list"):
        monkeypatch.setattr(official, listing, [(f, md5(files[f])) for f, _ in getattr(official, listing)])
    meta = {**official.meta, "md5": md5(files[official.meta["filename"]])}
    monkeypatch.setattr(official, "meta", meta)
    monkeypatch.setattr(official, "tgz_md5", md5(archive.read_bytes()))
    monkeypatch.setattr(official, "url", f"file:///nowhere/{official.filename}")  # no test reaches the network
    return archive
