"""What readers make of files, and the one error about a file that is missing, damaged or inconsistent."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dkel_lightning import data as data_package
from dkel_lightning.app.tasks.train import train
from dkel_lightning.data import (
    CIFAR10DataModule,
    ImageFolderDataModule,
    NpzDataModule,
    TinyImageNetDataModule,
)
from dkel_lightning.data import decode as decode_module
from dkel_lightning.data.decode import decode_to
from dkel_lightning.data.imageset import ImageSet
from dkel_lightning.data.readers import tinyimagenet
from dkel_lightning.errors import ConfigError, DataError
from tests.compose import tiny_run

from .archives import fake_cifar, image_bytes, npz_arrays, tiny_members, write_folder, write_zip

Arrays = dict[str, NDArray[Any]]


# Image files


def encode(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_an_image_is_cut_to_its_centre_and_scaled_as_pillow_does() -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (8, 20, 3)).astype(np.uint8)
    wide = encode(Image.fromarray(pixels))
    channels_first = pixels.transpose(2, 0, 1)
    assert np.array_equal(decode_to(wide, "x", (3, 8, 8)), channels_first[:, :, 6:14])
    square = Image.fromarray(pixels[:, :8])
    scaled = np.asarray(square.resize((4, 4), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(decode_to(encode(square), "x", (3, 4, 4)), scaled)
    assert np.array_equal(decode_to(encode(square), "x", (3, 2, 2), margin=2.0), scaled[:, 1:3, 1:3])
    assert decode_to(wide, "x", (1, 4, 4)).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "not one of BMP, GIF"),
        (image_bytes(9)[:-40], "image"),
        (image_bytes(900, mode="I;16"), "more than 8 bits per channel: convert it"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not one of BMP, GIF"),
    ],
    ids=["text", "torn", "16 bits", "a program of PostScript"],
)
def test_an_unreadable_image_is_named(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"^x\.png is not a readable image \(.*{message}.*\): replace or remove it"):
        decode_to(content, "x.png", (3, 8, 8))


# .npz


def save(tmp_path: Path, arrays: Arrays) -> Path:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path / "data.npz"


def test_npz_keeps_grey_images_at_one_channel(tmp_path: Path) -> None:
    arrays = npz_arrays()
    arrays["train_labels"] = arrays["train_labels"][:, None].astype(np.uint8)
    data = NpzDataModule(str(save(tmp_path, arrays))).read()
    assert np.array_equal(data.train.images, arrays["train_images"][:, None])
    assert np.array_equal(data.train.labels, arrays["train_labels"][:, 0])
    assert (data.class_names, data.val) == (("0", "1", "2"), None)


@pytest.mark.parametrize(("name", "kind"), [("unlabelled_images", np.int64), ("unlabeled_images", np.uint64)])
def test_npz_appends_images_without_labels_to_the_training_images(tmp_path: Path, name: str, kind: Any) -> None:
    arrays = npz_arrays()
    if kind == np.int64:
        arrays["train_labels"][:2] = -1
    arrays["train_labels"] = arrays["train_labels"].astype(kind)
    more = arrays[name] = arrays.pop("test_images")
    del arrays["test_labels"]
    data = NpzDataModule(str(save(tmp_path, arrays))).read()
    assert np.array_equal(data.train.images[30:, 0], more)
    assert data.train.labels.tolist() == [*arrays["train_labels"].tolist(), *[-1] * 15]
    assert (data.class_names, data.test) == (("0", "1", "2"), None)


def test_npz_moves_colour_first_and_reads_validation_and_names(tmp_path: Path) -> None:
    arrays = npz_arrays(shape=(8, 6, 3))
    arrays |= {"val_images": arrays["test_images"], "val_labels": arrays["test_labels"]}
    arrays["class_names"] = np.array(["a", "b", "c"])
    data = NpzDataModule(str(save(tmp_path, arrays))).read()
    assert data.train.images.shape == (30, 3, 8, 6)
    assert np.array_equal(data.train.images[:, 2], arrays["train_images"][..., 2])
    assert data.class_names == ("a", "b", "c")
    assert data.val is not None
    assert len(data.val) == 15


BAD_NPZ: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "missing": (lambda a: a.pop("test_labels"), "lacks test_labels; it needs train_images"),
    "float images": (
        lambda a: a.update(train_images=a["train_images"] / 255.0),
        r"train_images is float64 \[30, 8, 8\]: store values 0\.\.255 as uint8",
    ),
    "channels first": (
        lambda a: a.update(train_images=np.zeros((30, 3, 8, 8), np.uint8)),
        r"train_images is uint8 \[30, 3, 8, 8\]: .*\[N, H, W, C\]",
    ),
    "other size": (
        lambda a: a.update(test_images=np.zeros((15, 9, 9), np.uint8)),
        r"test images are uint8 \[15, 1, 9, 9\]: .*the shape \[1, 8, 8\] of the training images",
    ),
    "empty": (lambda a: a.update(test_images=a["test_images"][:0], test_labels=a["test_labels"][:0]), "test images"),
    "float labels": (
        lambda a: a.update(train_labels=a["train_labels"] * 1.0),
        r"train labels are float64 \[30\] .*integer",
    ),
    "text labels": (
        lambda a: a.update(train_labels=a["train_labels"].astype(str)),
        r"train labels are <U\d+ \[30\] .*integer",
    ),
    "lengths": (lambda a: a.update(train_labels=a["train_labels"][:-1]), r"int64 \[29\] for 30 images"),
    "negative": (lambda a: a.update(test_labels=a["test_labels"] - 1), "test labels run from -1 to 1, but with 3"),
    "from 1": (
        lambda a: a.update(train_labels=a["train_labels"] + 1, test_labels=a["test_labels"] + 1),
        r"train labels run from 1 to 3, but with 3 classes they must lie in -1\.\.2",
    ),
    "a class without images": (
        lambda a: a.update(class_names=np.array(["a", "b", "c", "d"])),
        r"no training image has the label 3 \(d\) of 4 classes: number the classes",
    ),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_says_which_array_is_wrong(tmp_path: Path, case: str) -> None:
    spoil, message = BAD_NPZ[case]
    arrays = npz_arrays()
    spoil(arrays)
    with pytest.raises(DataError, match=rf"data\.npz.* {message}"):
        NpzDataModule(str(save(tmp_path, arrays))).setup()


def test_npz_that_is_torn_absent_or_something_else(tmp_path: Path) -> None:
    path = save(tmp_path, npz_arrays())
    path.write_bytes(path.read_bytes()[:-100])
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("data.npz", "no.npz", "one.npy"):
        with pytest.raises(DataError, match=rf"{name} cannot be read .*: data\.root must be an \.npz file"):
            NpzDataModule(str(tmp_path / name)).setup()


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_nothing_in_an_npz_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train_images", "class_names"):
        path = save(tmp_path, {**npz_arrays(), name: np.array([Evil()] * 30)})
        with pytest.raises(DataError, match="Object arrays cannot be loaded"):
            NpzDataModule(str(path)).setup()
    assert not (tmp_path / "evil").exists()


# CIFAR


@pytest.mark.parametrize(("name", "train"), [("CIFAR10", 50), ("CIFAR100", 10)])
def test_cifar_is_unpacked_from_an_archive_at_hand(
    name: str, train: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cifar(name, tmp_path, monkeypatch)
    module: Any = getattr(data_package, f"{name}DataModule")(str(tmp_path))
    module.prepare_data()
    data = module.read()
    assert data.train.images.shape == (train, 3, 32, 32)
    assert data.train.images.flags.c_contiguous
    assert data.train.images[0, :, 0, 1].tolist() == [1, 2, 3]
    assert int(data.train.images.sum()) == 6 * train
    assert data.test.labels.tolist() == list(range(10))
    assert data.class_names[9] == "class 9"


def test_cifar_that_is_missing_or_damaged_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = fake_cifar("CIFAR10", tmp_path, monkeypatch)
    CIFAR10DataModule(str(tmp_path)).prepare_data()
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"broken")  # no pickle of another md5 is opened
    cure = r"CIFAR10 in .*: .* Set data\.download=true .*or put cifar-10-python\.tar\.gz \(file.*, md5 "
    with pytest.raises(DataError, match=cure):
        CIFAR10DataModule(str(tmp_path)).read()
    CIFAR10DataModule(str(tmp_path)).prepare_data()
    assert len(CIFAR10DataModule(str(tmp_path)).read().train) == 50
    archive.unlink()
    for root, download in ((tmp_path / "new", False), (tmp_path / "new", True)):
        with pytest.raises(DataError, match=cure):
            CIFAR10DataModule(str(root), download=download).prepare_data()


# Image folders

folder_of = partial(ImageFolderDataModule, image_size=4)


def folder(tmp_path: Path) -> Path:
    files = {f"train/{c}/{k}.png": image_bytes(10 * i + k) for i, c in enumerate(("cat", "cache")) for k in range(3)}
    files |= {f"val/{c}/x.png": image_bytes(100 + i) for i, c in enumerate(("cat", "cache"))}
    return write_folder(tmp_path / "images", files)


def read(root: Path, **settings: Any) -> ImageSet:
    module = folder_of(str(root), **settings)
    module.prepare_data()
    return module.read()


def values(data: ImageSet) -> list[int]:
    return data.train.images[:, 0, 0, 0].tolist()


def test_image_folder_reads_classes_and_files_in_order(tmp_path: Path) -> None:
    root = folder(tmp_path)
    write_folder(root, {"train/cat/notes.txt": b"", "train/.hidden/0.png": b"", "train/cat/.hidden/0.png": b""})
    write_folder(root, {"train/cat/deep/4.JPG": image_bytes(4)})
    shutil.move(root / "train/cache", tmp_path / "elsewhere")
    (root / "train/cache").symlink_to(tmp_path / "elsewhere")
    data = read(root)
    assert data.class_names == ("cache", "cat")
    assert values(data) == [10, 11, 12, 0, 1, 2, 4]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert data.test.images[:, 2, 3, 3].tolist() == [101, 100]
    assert data.val is None
    write_folder(root, {f"test/{c}/x.png": image_bytes(50) for c in ("cat", "cache")})
    both = read(root)
    assert both.val is not None
    assert (both.test.images[0, 0, 0, 0], both.val.images[0, 0, 0, 0]) == (50, 101)


def test_the_cache_is_used_until_an_image_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path)
    before = read(root)
    assert isinstance(before.train.images, np.memmap)
    assert len(list((root / "dkel_cache").glob("*.npy"))) == 2
    with monkeypatch.context() as patched:
        patched.setattr(decode_module, "decode_to", None)  # would raise if anything were decoded
        read(root)
        shutil.copytree(root, tmp_path / "moved")
        assert values(read(tmp_path / "moved")) == values(before)
    (root / "train/cat/2.png").write_bytes(image_bytes(3))  # of the same length
    assert values(read(root)) == [10, 11, 12, 0, 1, 3]
    (root / "train/cat/0.png").unlink()
    with pytest.raises(DataError, match=r"no cache .* of the current images: call prepare_data\(\) first"):
        folder_of(str(root)).read()
    assert values(read(root)) == [10, 11, 12, 1, 3]
    for old, new in (("cat", "other"), ("cache", "cat"), ("other", "cache")):
        (root / "train" / old).rename(root / "train" / new)
    assert values(read(root)) == [1, 3, 10, 11, 12]
    assert read(root, image_size=6, cache_dir=str(tmp_path / "c")).train.images.shape == (5, 3, 6, 6)
    assert len(list((tmp_path / "c").glob("6px-*.npy"))) == 2


def test_a_size_of_nothing_and_a_folder_of_unlabelled_images_among_the_classes_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.image_size must be a whole number above 0, got 0"):
        read(root, image_size=0)
    write_folder(root, {"train/unlabelled/0.png": image_bytes(1)})
    with pytest.raises(DataError, match="unlabelled is no class: move it to"):
        read(root)


def test_broken_images_are_named_at_once_and_left_out_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path)
    for name in ("train/cat/1.png", "train/cache/0.png", "val/cat/x.png", "train/cat/2.png"):
        (root / name).write_bytes(b"text")
    write_folder(root, {f"val/{c}/y.png": image_bytes(70) for c in ("cat", "cache")})
    some = r"train/cache/0\.png \(not one of .*1\.png.*2\.png.*; and 1 more"
    cure = r"Replace or remove them, or set data\.skip_broken=true"
    for _ in range(2):  # also where the cache is there
        with pytest.raises(DataError, match=rf"^4 of 10 images in .* cannot be read: {some}\. {cure}"):
            folder_of(str(root)).prepare_data()
    (root / "train/cat/gone.png").symlink_to(tmp_path / "nowhere.png")
    module = folder_of(str(root), skip_broken=True)
    with monkeypatch.context() as patched:  # an error that may pass is not that of an image
        patched.setattr(Path, "read_bytes", Mock(side_effect=OSError("too many open files")))
        with pytest.raises(OSError, match="too many"):
            module.prepare_data()
    module.prepare_data()
    data = module.read()
    assert values(data) == [11, 12, 0]
    assert data.train.labels.tolist() == [0, 0, 1]
    assert data.test is not None
    assert data.test.images[:, 0, 0, 0].tolist() == [101, 70, 70]
    names = ["train/cache/0.png", "train/cat/1.png", "train/cat/2.png", "train/cat/gone.png", "val/cat/x.png"]
    assert sorted(module.broken) == names
    run = tiny_run(
        tmp_path / "run", "data=image_folder", f"data.root={root}", "data.image_size=8", "data.skip_broken=true",
        "data.batch_size=2", "data.validation=0.4",
    )  # fmt: skip
    train(run)
    assert "not one of" in json.loads((run.folder / "broken_images.json").read_text("utf-8"))["train/cat/1.png"]


def test_a_flat_folder_or_one_without_a_test_set_is_split_by_seed_and_share(tmp_path: Path) -> None:
    files = {f"{c}/{k}.png": image_bytes(100 * i + k) for i, c in enumerate(("cat", "cow")) for k in range(50)}
    flat = write_folder(tmp_path / "flat", files)
    beside = write_folder(tmp_path / "beside", {f"train/{name}": content for name, content in files.items()})
    parts = []
    for root, seed in ((flat, 0), (beside, 0), (flat, 1)):
        module = folder_of(str(root), test=0.1, validation=0.2, split_seed=seed)
        module.prepare_data()
        module.setup()
        assert (module.class_names, module.train_size, module.val_size, module.test_size) == (
            ("cat", "cow"),
            72,
            18,
            10,
        )
        parts.append([module._splits[name].chosen.tolist() for name in ("train", "val", "test")])
        assert sorted(index for part in parts[-1] for index in part) == list(range(100))
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize("name", ["unlabelled", "unlabeled"])
def test_a_folder_unlabelled_holds_training_images_of_no_known_class(tmp_path: Path, name: str) -> None:
    root = folder(tmp_path)
    write_folder(root, {f"{name}/some/{k}.png": image_bytes(200 + k) for k in range(4)})
    data = read(root)
    assert data.class_names == ("cache", "cat")
    assert values(data) == [10, 11, 12, 0, 1, 2, 200, 201, 202, 203]
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3 + [-1] * 4


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, r"data\.root=.*images must contain train/CLASS/.*none of them"),
    "no train": (lambda r: (r / "train").rename(r / "training"), "must contain .*it contains val$"),
    "other names": (
        lambda r: [(r / a).rename(r / b) for a, b in (("train", "training"), ("val", "validation"))],
        "must contain .*it contains training, validation$",
    ),
    "empty class": (
        lambda r: [f.unlink() for f in (r / "train/cat").iterdir()],
        "train/cat contains no image .*remove it",
    ),
    "other classes": (
        lambda r: (r / "val/cat").rename(r / "val/dog"),
        "contain the same classes; only one has cat, dog",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_with_another_layout_is_refused(tmp_path: Path, case: str) -> None:
    spoil, message = FOLDERS[case]
    root = folder(tmp_path)
    spoil(root)
    with pytest.raises(DataError, match=message):
        folder_of(str(root)).prepare_data()


# TinyImageNet


def tiny_of(root: Path, **settings: Any) -> TinyImageNetDataModule:
    return TinyImageNetDataModule(str(root), **{"download": False, **settings})


@pytest.mark.parametrize("layout", ["folder itself", "holds folder", "zip"])
def test_every_place_of_tinyimagenet_gives_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    if layout == "zip":
        archive = write_zip(root / "tiny-imagenet-200.zip", tiny_members())
        monkeypatch.setattr(tinyimagenet, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    else:
        write_folder(root / "tiny-imagenet-200" if layout == "holds folder" else root, tiny_members())
    tiny_of(root).prepare_data()
    data = tiny_of(root).read()
    assert data.class_names == ("dog", "fish", "cat")  # the order of wnids.txt, not of the alphabet
    assert data.train.images.shape == (6, 3, 64, 64)
    assert data.train.images[:, :, 5, 5].tolist() == [[v] * 3 for v in (0, 1, 40, 41, 80, 81)]
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.images[:, 0, 0, 0].tolist() == [203, 200, 201, 204, 202]  # the order of the annotations
    assert data.test.labels.tolist() == [1, 2, 0, 0, 1]


def test_tinyimagenet_that_is_missing_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = write_zip(tmp_path / "tiny-imagenet-200.zip", tiny_members())  # of another md5
    cure = r"Put tiny-imagenet-200\.zip \(.*, md5 .*\) or its unpacked folder .* or set data\.download=true"
    for root in (tmp_path / "new", served.parent):
        with pytest.raises(DataError, match=rf"no TinyImageNet in .*\. {cure}"):
            tiny_of(root).prepare_data()
    monkeypatch.setattr(tinyimagenet, "URL", "file:///nowhere")
    with pytest.raises(DataError, match=rf"cannot be fetched into .*nowhere.* {cure}"):
        tiny_of(tmp_path / "new", download=True).prepare_data()
