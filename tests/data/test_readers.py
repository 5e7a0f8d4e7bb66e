from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dkel_lightning.data.imageset import ImageSet
from dkel_lightning.errors import DataError

from .archives import cifar_of, fake_cifar, folder_of, image_bytes, npz_arrays, npz_of, write_folder

Arrays = dict[str, NDArray[Any]]


# .npz


def save(tmp_path: Path, arrays: Arrays) -> Path:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path / "data.npz"


def test_npz_keeps_grey_images_at_one_channel(tmp_path: Path) -> None:
    arrays = npz_arrays()
    arrays["train_labels"] = arrays["train_labels"][:, None].astype(np.uint8)
    data = npz_of(save(tmp_path, arrays)).read()
    assert np.array_equal(data.train.images, arrays["train_images"][:, None])
    assert np.array_equal(data.train.labels, arrays["train_labels"][:, 0])
    assert data.class_names == ("0", "1", "2")
    assert data.val is None


def test_npz_moves_colour_first_and_reads_validation_and_names(tmp_path: Path) -> None:
    arrays = npz_arrays(shape=(8, 6, 3))
    arrays |= {"val_images": arrays["test_images"], "val_labels": arrays["test_labels"]}
    arrays["class_names"] = np.array(["a", "b", "c"])
    data = npz_of(save(tmp_path, arrays)).read()
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
    "lengths": (lambda a: a.update(train_labels=a["train_labels"][:-1]), "30 train images but 29 train labels"),
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
    "from 1": (
        lambda a: a.update(train_labels=a["train_labels"] + 1, test_labels=a["test_labels"] + 1),
        r"no training image has the label 0, and the labels go up to 3; number the 3 classes 0 to 2 without a gap",
    ),
    "with a gap": (
        lambda a: a.update(train_labels=np.where(a["train_labels"] == 1, 0, a["train_labels"])),
        r"no training image has the label 1",
    ),
    "one of a billion": (
        lambda a: a["train_labels"].__setitem__(3, 10**9),
        r"no training image has the label 3, and the labels go up to 1000000000; number the 4 classes 0 to 3 without",
    ),
    "beyond 63 bits": (
        lambda a: a.update(test_labels=np.full(15, 2**63, np.uint64)),
        "test_labels contains 9223372036854775808; number the classes from 0",
    ),
    "no name": (lambda a: a.update(class_names=np.array([], "U1")), "class_names holds 0 names for 30 training images"),
    "a name too many": (lambda a: a.update(class_names=np.array(["a", "b", "c", "d"])), r"has the label 3 \(d\)"),
    "a name twice": (lambda a: a.update(class_names=np.array(["a", "b", "a"])), "the class 'a' is there twice"),
    "names alike": (lambda a: a.update(class_names=np.array(["a", "b", "A"])), "'A' and 'a' differ only in capitals"),
    "huge": (lambda a: a["test_labels"].__setitem__(3, 2**62), r"test labels run from 0 to 4611686018427387904"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_says_which_array_is_wrong(tmp_path: Path, case: str) -> None:
    spoil, message = BAD_NPZ[case]
    arrays = npz_arrays()
    spoil(arrays)
    with pytest.raises(DataError, match=message):
        npz_of(save(tmp_path, arrays)).setup()


def test_npz_that_is_torn_absent_or_something_else(tmp_path: Path) -> None:
    path = save(tmp_path, npz_arrays())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"data\.npz is torn"):
        npz_of(path).setup()
    with pytest.raises(DataError, match=r"no\.npz is not a file; set root to an \.npz file"):
        npz_of(tmp_path / "no.npz").setup()
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="holds a single array"):
        npz_of(tmp_path / "one.npy").setup()


# CIFAR


@pytest.mark.parametrize(("name", "train"), [("CIFAR10", 50), ("CIFAR100", 10)])
def test_cifar_is_unpacked_from_an_archive_at_hand_without_download(
    name: Any, train: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cifar(name, tmp_path, monkeypatch)
    cifar_of(tmp_path, name).prepare_data()
    data = cifar_of(tmp_path, name).read()
    assert data.train.images.shape == (train, 3, 32, 32)
    assert data.train.images.flags.c_contiguous
    assert data.train.images[0, :, 0, 1].tolist() == [1, 2, 3]
    assert int(data.train.images.sum()) == 6 * train
    assert data.test.labels.tolist() == list(range(10))
    assert data.class_names[9] == "class 9"


def test_cifar_that_is_missing_says_which_file_goes_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        cifar_of(tmp_path / "new", "CIFAR100").prepare_data()
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
        cifar_of(tmp_path, download=True).prepare_data()


def test_cifar_that_is_damaged_is_named_and_an_archive_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = fake_cifar("CIFAR10", tmp_path, monkeypatch)
    cifar_of(tmp_path).prepare_data()
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"broken")
    with pytest.raises(DataError, match="data_batch_3 is damaged"):
        cifar_of(tmp_path).read()
    cifar_of(tmp_path).prepare_data()
    assert len(cifar_of(tmp_path).read().train) == 50
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"broken")
    archive.write_bytes(b"torn")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged"):
        cifar_of(tmp_path).prepare_data()


# Image folders


def folder(tmp_path: Path) -> Path:
    files = {f"train/{c}/{k}.png": image_bytes(10 * i + k) for i, c in enumerate(("cat", "cache")) for k in range(3)}
    files |= {f"val/{c}/x.png": image_bytes(100 + i) for i, c in enumerate(("cat", "cache"))}
    return write_folder(tmp_path / "images", files)


def read(root: Path, size: int = 4) -> ImageSet:
    folder_of(root, size).prepare_data()
    return folder_of(root, size).read()


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
    assert data.val.images[:, 0, 0, 0].tolist() == [101, 100]


def test_image_folder_crops_the_centre_and_follows_changes(tmp_path: Path) -> None:
    root = folder(tmp_path)
    striped = np.zeros((4, 12, 3), np.uint8)
    striped[:, 4:8] = 200
    Image.fromarray(striped).save(root / "train/cat/0.png")
    assert (read(root).train.images[3] == 200).all()
    (root / "train/cat/0.png").unlink()
    with pytest.raises(DataError, match=r"no up-to-date image cache .*: call prepare_data\(\) first"):
        folder_of(root).read()
    assert len(read(root).train) == 5
    assert len(list((root / "dkel_cache").glob("image_folder-4-*"))) == 1
    assert read(root, size=6).train.images.shape == (5, 3, 6, 6)
    assert len(folder_of(root).read().train) == 5  # the other size is still there


def test_two_class_folders_that_are_swapped_are_other_images(tmp_path: Path) -> None:
    root = folder(tmp_path)
    before = read(root)
    for old, new in (("cat", "other"), ("cache", "cat"), ("other", "cache")):
        (root / "train" / old).rename(root / "train" / new)
    assert before.train.images[:, 0, 0, 0].tolist() == [10, 11, 12, 0, 1, 2]
    assert read(root).train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
