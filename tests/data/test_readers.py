from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dkel_lightning.data.files import decode
from dkel_lightning.data.imageset import ImageSet
from dkel_lightning.data.readers.cifar import prepare_cifar, read_cifar
from dkel_lightning.data.readers.image_folder import prepare_image_folder, read_image_folder
from dkel_lightning.data.readers.npz import read_npz
from dkel_lightning.errors import DataError

from .archives import fake_cifar, image_bytes, npz_arrays, write_folder

Arrays = dict[str, NDArray[Any]]


# .npz


def save(tmp_path: Path, arrays: Arrays) -> Path:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path / "data.npz"


def test_npz_keeps_grey_images_at_one_channel(tmp_path: Path) -> None:
    arrays = npz_arrays()
    arrays["train_labels"] = arrays["train_labels"][:, None].astype(np.uint8)
    data = read_npz(save(tmp_path, arrays))
    assert np.array_equal(data.train.images, arrays["train_images"][:, None])
    assert np.array_equal(data.train.labels, arrays["train_labels"][:, 0])
    assert data.class_names == ("0", "1", "2")
    assert data.val is None


def test_npz_moves_colour_first_and_reads_validation_and_names(tmp_path: Path) -> None:
    arrays = npz_arrays(shape=(8, 6, 3))
    arrays |= {"val_images": arrays["test_images"], "val_labels": arrays["test_labels"]}
    arrays["class_names"] = np.array(["a", "b", "c"])
    data = read_npz(save(tmp_path, arrays))
    assert data.train.images.shape == (30, 3, 8, 6)
    assert np.array_equal(data.train.images[:, 2], arrays["train_images"][..., 2])
    assert data.class_names == ("a", "b", "c")
    assert data.val is not None
    assert len(data.val) == 15


def nan_like(array: NDArray[Any]) -> NDArray[Any]:
    return np.full(array.shape, np.nan, np.float32)


BAD_NPZ: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "missing": (lambda a: a.pop("test_labels"), "lacks test_labels; it needs train_images"),
    "half a validation split": (lambda a: a.update(val_images=a["test_images"]), "lacks val_labels"),
    "float images": (
        lambda a: a.update(train_images=a["train_images"] / 255.0),
        r"train_images is float64; store .* as uint8",
    ),
    "NaN images": (
        lambda a: a.update(test_images=nan_like(a["test_images"])),
        "test_images is float32 and contains NaN",
    ),
    "NaN labels": (
        lambda a: a.update(test_labels=nan_like(a["test_labels"])),
        "test_labels is float32 and contains NaN",
    ),
    "float labels": (lambda a: a.update(train_labels=a["train_labels"] * 1.0), "store class numbers .* as integers"),
    "lengths": (lambda a: a.update(train_labels=a["train_labels"][:-1]), "holds 30 images but train_labels 29 labels"),
    "negative": (lambda a: a.update(train_labels=a["train_labels"] - 1), "train_labels contains -1; number .* from 0"),
    "too large": (
        lambda a: a.update(test_labels=a["test_labels"] + 1),
        r"test labels run from 1 to 3, but with 3 classes .* 0\.\.2",
    ),
    "too few names": (lambda a: a.update(class_names=np.array(["a"])), "with 1 classes they must lie"),
    "numbers as names": (lambda a: a.update(class_names=np.arange(3)), "class_names is int64"),
    "channels first": (
        lambda a: a.update(train_images=np.zeros((30, 3, 8, 8), np.uint8)),
        r"train_images has the shape \(30, 3, 8, 8\); store \[N,H,W\]",
    ),
    "many labels": (lambda a: a.update(train_labels=np.zeros((30, 2), int)), "one class number an image"),
    "other size": (lambda a: a.update(test_images=np.zeros((15, 9, 9), np.uint8)), r"test images are \(1, 9, 9\)"),
    "empty": (lambda a: a.update(test_images=np.zeros((0, 8, 8), np.uint8)), "test_images is empty"),
    "pickled": (lambda a: a.update(train_labels=np.array([None] * 30)), "train_labels cannot be read .*plain array"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_says_which_array_is_wrong(tmp_path: Path, case: str) -> None:
    spoil, message = BAD_NPZ[case]
    arrays = npz_arrays()
    spoil(arrays)
    with pytest.raises(DataError, match=message):
        read_npz(save(tmp_path, arrays))


def test_npz_that_is_torn_absent_or_something_else(tmp_path: Path) -> None:
    path = save(tmp_path, npz_arrays())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"data\.npz is torn"):
        read_npz(path)
    with pytest.raises(DataError, match=r"no\.npz is not a file; set root to an \.npz file"):
        read_npz(tmp_path / "no.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="holds a single array"):
        read_npz(tmp_path / "one.npy")


# CIFAR


@pytest.mark.parametrize(("name", "train"), [("CIFAR10", 50), ("CIFAR100", 10)])
def test_cifar_is_unpacked_from_an_archive_at_hand_without_download(
    name: Any, train: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cifar(name, tmp_path, monkeypatch)
    prepare_cifar(name, tmp_path, download=False)
    data = read_cifar(name, tmp_path)
    assert data.train.images.shape == (train, 3, 32, 32)
    assert data.train.images.flags.c_contiguous
    assert data.train.images[0, :, 0, 1].tolist() == [1, 2, 3]
    assert int(data.train.images.sum()) == 6 * train
    assert data.test.labels.tolist() == list(range(10))
    assert data.class_names[9] == "class 9"


def test_cifar_that_is_missing_says_which_file_goes_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare_cifar("CIFAR100", tmp_path / "new", download=False)
    message = str(caught.value)
    assert "is missing" in message
    assert "Put cifar-100-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz, md5 " in message
    assert f"into {tmp_path / 'new'}, or set data.download=true" in message
    assert not (tmp_path / "new").exists()


def test_cifar_without_a_network_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar("CIFAR10", tmp_path, monkeypatch).unlink()
    with pytest.raises(
        DataError, match=r"downloading http://127.* failed .*put cifar-10-python\.tar\.gz into .* by hand"
    ):
        prepare_cifar("CIFAR10", tmp_path, download=True)


def test_cifar_that_is_damaged_is_named_and_an_archive_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = fake_cifar("CIFAR10", tmp_path, monkeypatch)
    prepare_cifar("CIFAR10", tmp_path, download=False)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"broken")
    with pytest.raises(DataError, match="data_batch_3 is damaged"):
        read_cifar("CIFAR10", tmp_path)
    prepare_cifar("CIFAR10", tmp_path, download=False)
    assert len(read_cifar("CIFAR10", tmp_path).train) == 50
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"broken")
    archive.write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged"):
        prepare_cifar("CIFAR10", tmp_path, download=False)


# Image folders


def folder(tmp_path: Path) -> Path:
    files = {f"train/{c}/{k}.png": image_bytes(10 * i + k) for i, c in enumerate(("cat", "cache")) for k in range(3)}
    files |= {f"val/{c}/x.png": image_bytes(100 + i) for i, c in enumerate(("cat", "cache"))}
    return write_folder(tmp_path / "images", files)


def read(root: Path, size: int = 4) -> ImageSet:
    prepare_image_folder(root, size, None)
    return read_image_folder(root, size, None)


def test_image_folder_reads_classes_in_order(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "train/cat/notes.txt").write_text("ignored")
    (root / "train/.hidden").mkdir()
    data = read(root)
    assert data.class_names == ("cache", "cat")
    assert data.train.images[:, 0, 0, 0].tolist() == [10, 11, 12, 0, 1, 2]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.images[:, 2, 3, 3].tolist() == [101, 100]
    assert data.val is None


def test_image_folder_with_test_and_val_has_both(tmp_path: Path) -> None:
    root = folder(tmp_path)
    write_folder(root, {f"test/{c}/x.png": image_bytes(50) for c in ("cat", "cache")})
    data = read(root)
    assert data.test.images[:, 0, 0, 0].tolist() == [50, 50]
    assert data.val is not None
    assert data.val.images[:, 0, 0, 0].tolist() == [101, 100]


def test_image_folder_crops_the_centre_and_follows_changes(tmp_path: Path) -> None:
    root = folder(tmp_path)
    striped = np.zeros((4, 12, 3), np.uint8)
    striped[:, 4:8] = 200
    Image.fromarray(striped).save(root / "train/cat/0.png")
    assert (read(root).train.images[3] == 200).all()
    (root / "train/cat/0.png").unlink()
    with pytest.raises(DataError, match=r"no up-to-date image cache .*: call prepare_data\(\) first"):
        read_image_folder(root, 4, None)
    assert len(read(root).train) == 5
    assert len(list((root / "dkel_cache").glob("image_folder-4-*"))) == 1
    assert read(root, size=6).train.images.shape == (5, 3, 6, 6)
    assert len(read_image_folder(root, 4, None).train) == 5  # the other size is still there


def test_a_thin_image_does_not_blow_up(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "train/cat/0.png").write_bytes(image_bytes(9, size=(30_000, 1)))
    assert (read(root).train.images[3] == 9).all()


def claims(width: int, height: int) -> bytes:
    """A small image whose header claims another size."""
    content = bytearray(image_bytes(0, form="BMP"))
    content[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(content)


def emptied(root: Path) -> None:
    for path in (root / "train/cat").iterdir():
        path.unlink()


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no train": (lambda r: (r / "train").rename(r / "training"), "has no folder train"),
    "no test": (lambda r: (r / "val").rename(r / "validation"), "has neither a folder test nor val"),
    "empty class": (
        emptied,
        r"train/cat holds no image .*add some or remove it",
    ),
    "other classes": (
        lambda r: (r / "val/cat").rename(r / "val/dog"),
        "must hold the same classes; only one has cat, dog",
    ),
    "no image": (lambda r: (r / "train/cat/1.png").write_text("text"), r"train/cat/1\.png is no readable image"),
    "truncated": (
        lambda r: (r / "train/cat/1.png").write_bytes(image_bytes(1)[:-40]),
        r"train/cat/1\.png is no readable image",
    ),
    "bomb": (
        lambda r: (r / "train/cat/1.bmp").write_bytes(claims(12_000, 12_000)),
        r"train/cat/1\.bmp claims 12000x12000 pixels",
    ),
    "huge bomb": (
        lambda r: (r / "train/cat/1.bmp").write_bytes(claims(40_000, 40_000)),
        r"train/cat/1\.bmp is no readable image .*decompression bomb",
    ),
    "16 bits": (
        lambda r: (r / "train/cat/1.png").write_bytes(image_bytes(999, mode="I;16")),
        r"train/cat/1\.png has more than 8 bits",
    ),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_image_folder_says_which_file_is_wrong(tmp_path: Path, case: str) -> None:
    spoil, message = BAD_FOLDERS[case]
    root = folder(tmp_path)
    spoil(root)
    with pytest.raises(DataError, match=message):
        read(root)
    assert not list(root.rglob("*image_folder-*"))


def test_decoding_an_exact_size_refuses_another(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x measures 63x64 pixels, not 64x64"):
        decode.decode_exact(image_bytes(0, size=(63, 64)), "x", 64)
