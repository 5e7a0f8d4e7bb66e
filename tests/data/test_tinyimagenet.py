from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dkel_lightning.data import TinyImageNetDataModule
from dkel_lightning.data.imageset import ImageSet
from dkel_lightning.data.readers import tinyimagenet
from dkel_lightning.errors import DataError

from .archives import image_bytes, tiny_members, tiny_of, write_folder, write_zip

ZIP = "tiny-imagenet-200.zip"


def read(root: Path) -> ImageSet:
    tiny_of(root).prepare_data()
    return tiny_of(root).read()


def assert_is_tiny(data: ImageSet) -> None:
    assert data.class_names == ("dog", "fish", "cat")  # the order of wnids.txt, not of the alphabet
    assert data.train.images.shape == (6, 3, 64, 64)
    assert data.train.images[:, :, 5, 5].tolist() == [[v] * 3 for v in (0, 1, 40, 41, 80, 81)]
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.test.images[:, 0, 0, 0].tolist() == [203, 200, 201, 204, 202]  # the order of the annotations
    assert data.test.labels.tolist() == [1, 2, 0, 0, 1]


@pytest.mark.parametrize("layout", ["zip itself", "holds zip", "folder itself", "holds folder", "flat zip"])
def test_every_place_of_the_data_gives_the_same_images(tmp_path: Path, layout: str) -> None:
    if layout == "zip itself":
        root = write_zip(tmp_path / "mini.zip", tiny_members())
    elif layout == "holds zip":
        root = write_zip(tmp_path / ZIP, tiny_members()).parent
    elif layout == "flat zip":
        root = write_zip(tmp_path / "flat.zip", tiny_members(), prefix="")
    elif layout == "folder itself":
        root = write_folder(tmp_path / "anything", tiny_members())
    else:
        root = write_folder(tmp_path / "tiny-imagenet-200", tiny_members()).parent
    assert_is_tiny(read(root))
    assert_is_tiny(read(root))


def test_a_zip_is_preferred_to_a_folder_that_may_be_half_unpacked(tmp_path: Path) -> None:
    write_zip(tmp_path / ZIP, tiny_members())
    write_folder(tmp_path / "tiny-imagenet-200", tiny_members())
    assert tinyimagenet.find_tinyimagenet(tmp_path) == tmp_path / ZIP


def test_the_cache_is_used_until_the_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / ZIP, tiny_members())
    read(tmp_path)
    (cache,) = (tmp_path / "dkel_cache").glob("tinyimagenet-*")
    about = json.loads((cache / "about.json").read_text())
    assert about["images"] == {"train": 6, "test": 5}
    assert about["notes"]["official"] is False
    with monkeypatch.context() as patched:
        patched.setattr(tinyimagenet, "decode_exact", None)  # would raise if anything were decoded
        assert_is_tiny(read(tmp_path))
    members = tiny_members()
    members["train/n02/images/n02_9.JPEG"] = image_bytes(9)
    write_zip(tmp_path / ZIP, members)
    with pytest.raises(DataError, match=r"no up-to-date image cache .*call prepare_data\(\) first"):
        tiny_of(tmp_path).read()
    assert len(read(tmp_path).train) == 7
    assert [path != cache for path in (tmp_path / "dkel_cache").glob("tinyimagenet-*")] == [True]


def test_a_damaged_cache_is_written_again(tmp_path: Path) -> None:
    write_zip(tmp_path / ZIP, tiny_members())
    read(tmp_path)
    (cache,) = (tmp_path / "dkel_cache").glob("tinyimagenet-*")
    with (cache / "train_images.npy").open("r+b") as file:
        file.truncate(1000)
    assert_is_tiny(read(tmp_path))


def test_the_cache_moves_with_the_data_and_to_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_zip(tmp_path / "a" / ZIP, tiny_members())
    tiny_of(tmp_path / "a", cache_dir=str(tmp_path / "elsewhere")).prepare_data()
    assert not (tmp_path / "a" / "dkel_cache").exists()
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert_is_tiny(tiny_of(tmp_path / "b", cache_dir=str(tmp_path / "elsewhere")).read())


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("tiny-imagenet-200/train/n01/images/n01_1.JPEG").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 255
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(truncated, rf"{ZIP} is torn or no zip .*Delete .*download=true"), (flipped, r"n01_1\.JPEG is damaged")],
)
def test_a_torn_zip_is_named_with_its_cure(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(write_zip(tmp_path / ZIP, tiny_members()))
    with pytest.raises(DataError, match=message):
        tiny_of(tmp_path, download=True).prepare_data()


ANNOTATIONS = "val/val_annotations.txt"
BAD: dict[str, tuple[dict[str, bytes | None], str]] = {
    "size": ({"train/n01/images/n01_1.JPEG": image_bytes(0, size=(64, 65))}, r"n01_1\.JPEG measures 64x65 pixels"),
    "no image": (
        {"val/images/val_2.JPEG": b"text"},
        r"val/images/val_2\.JPEG is no readable image \(its format is not known\)",
    ),
    "bomb": ({"val/images/val_2.JPEG": bytes(2 << 20)}, r"val_2\.JPEG unpacks to 2097152 bytes, more than 1048576"),
    "no wnids": ({"wnids.txt": None}, r"lacks wnids\.txt, so it is not the official layout"),
    "no annotations": ({ANNOTATIONS: None}, r"lacks val/val_annotations\.txt"),
    "empty annotations": ({ANNOTATIONS: b""}, "names no image"),
    "unknown class": (
        {ANNOTATIONS: b"val_0.JPEG\tn77\t0"},
        r"line 1 of val/val_annotations\.txt names the class 'n77'",
    ),
    "climbing": ({ANNOTATIONS: b"../../wnids.txt\tn01"}, r"names the image '\.\./\.\./wnids\.txt', which is not in"),
    "missing image": ({"val/images/val_1.JPEG": None}, r"line 3 .* names the image 'val_1\.JPEG'"),
    "empty class": (
        {"train/n03/images/n03_0.JPEG": None, "train/n03/images/n03_1.JPEG": None},
        "no image in train/n03/images",
    ),
    "a class twice": ({"wnids.txt": b"n01\nn01\n"}, "must name every class once"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_content_is_named(tmp_path: Path, case: str) -> None:
    changes, message = BAD[case]
    members = {name: content for name, content in {**tiny_members(), **changes}.items() if content is not None}
    write_zip(tmp_path / ZIP, members)
    with pytest.raises(DataError, match=message):
        tiny_of(tmp_path).prepare_data()
    assert not list((tmp_path / "dkel_cache").glob("tinyimagenet-*"))


def test_nothing_there_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        tiny_of(tmp_path / "new").prepare_data()
    message = str(caught.value)
    assert f"no TinyImageNet at {tmp_path / 'new'}: put {ZIP} ({tinyimagenet.URL}" in message
    assert "download=true" in message
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.skipif("DKEL_REAL_DATA" not in os.environ, reason="needs DKEL_REAL_DATA, a folder with tiny-imagenet-200")
def test_the_real_images(tmp_path: Path) -> None:
    root = Path(os.environ["DKEL_REAL_DATA"])
    root = next((p for p in (root / "tiny-imagenet-200.mini.zip", root / ZIP) if p.exists()), root)
    module = TinyImageNetDataModule(str(root), download=False, cache_dir=str(tmp_path))
    module.prepare_data()
    module.setup()
    assert module.num_classes == 200
    assert module.image_shape == (3, 64, 64)
    images, labels, _ = next(iter(module.test_dataloader()))
    # The mean of ImageNet images, normalised with the constants of this set, is near 0 with a deviation near 1.
    np.testing.assert_allclose(images.mean(), 0, atol=0.15)
    np.testing.assert_allclose(images.std(), 1, atol=0.25)
    assert labels.max() < 200
