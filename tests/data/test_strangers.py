"""Files that nobody vouches for: each gives one error that names it and the cure, and leaves what was there whole."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from dkel_lightning.data.files import cache as cache_module
from dkel_lightning.data.files.decode import MOST_PIXELS, decode_exact, decode_to
from dkel_lightning.data.readers import cifar, image_folder, npz
from dkel_lightning.errors import DataError
from tests.disks import as_root, file_size_limit, small_disk
from tests.pipes import not_waited_for, piped
from tests.reliability.harness import in_a_child

from .archives import (
    cifar_of,
    fake_cifar,
    folder_of,
    image_bytes,
    npz_arrays,
    npz_of,
    tiny_members,
    tiny_of,
    write_folder,
    write_zip,
)

ZIP = "tiny-imagenet-200.zip"
NOBODY = 65534


def contents(folder: Path) -> dict[str, bytes | None]:
    """All that lies below a folder, but for the locks: the bytes of files, None for anything else."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.name.endswith(".lock"):
            plain = path.is_file() and not path.is_symlink()
            found[path.relative_to(folder).as_posix()] = path.read_bytes() if plain else None
    return found


def images(tmp_path: Path, count: int = 3) -> Path:
    files = {f"train/{c}/{k}.png": image_bytes(10 * i + k) for i, c in enumerate("ab") for k in range(count)}
    files |= {f"test/{c}/x.png": image_bytes(100 + i) for i, c in enumerate("ab")}
    return write_folder(tmp_path / "images", files)


@contextmanager
def small_in_memory(most: int = 32 << 20) -> Iterator[None]:
    """Fail where more than this is allocated at once; what is imported for the first time counts too."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


# Tar archives


def test_a_cifar_archive_that_is_not_the_official_one_is_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = fake_cifar("CIFAR10", tmp_path, monkeypatch)
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../evil.txt"))
    monkeypatch.setattr(tarfile, "open", lambda *args, **settings: pytest.fail("opened"))
    before = contents(tmp_path.parent)
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged \(its md5 is not"):
        cifar_of(tmp_path).prepare_data()
    assert contents(tmp_path.parent) == before


# Zip archives


def member(name: str, content: bytes = b"evil", **attributes: Any) -> Callable[[zipfile.ZipFile], None]:
    def write(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        for key, value in attributes.items():
            setattr(info, key, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are there already
            archive.writestr(info, content)

    return write


IN_ZIP = "tiny-imagenet-200/train/n02/images"
ZIPS: dict[str, tuple[Callable[[zipfile.ZipFile], None], str]] = {
    "climbing": (member(f"{IN_ZIP}/../../../../../evil.JPEG"), r"evil\.JPEG leads out of the archive's folder"),
    "climbing from the top": (member("../../evil.txt"), r"\.\./\.\./evil\.txt leads out of the archive's folder"),
    "climbing on Windows": (member("..\\evil.txt"), "leads out of the archive's folder"),
    "absolute": (member("/tmp/dkel_evil.txt"), "/tmp/dkel_evil.txt leads out of the archive's folder"),
    "absolute on Windows": (member("C:\\evil.txt"), "leads out of the archive's folder"),
    "link": (
        member(f"{IN_ZIP}/n02_link.JPEG", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16),
        r"n02_link\.JPEG is a link; nothing was unpacked",
    ),
    "twice": (member(f"{IN_ZIP}/n02_0.JPEG"), r"n02_0\.JPEG is there twice"),
    "unbounded packing": (
        member(f"{IN_ZIP}/n02_9.JPEG", image_bytes(0), compress_type=zipfile.ZIP_BZIP2),
        r"n02_9\.JPEG is neither stored nor deflated: pack the archive again",
    ),
}


@pytest.mark.parametrize("case", ZIPS)
def test_a_zip_that_reaches_out_or_swells_is_refused(tmp_path: Path, case: str) -> None:
    spoil, message = ZIPS[case]
    path = write_zip(tmp_path / ZIP, tiny_members())
    tiny_of(tmp_path).prepare_data()
    with zipfile.ZipFile(path, "a") as archive:
        spoil(archive)
    before = contents(tmp_path.parent)
    with pytest.raises(DataError, match=rf"{ZIP}: .*{message}"):
        tiny_of(tmp_path).prepare_data()
    assert contents(tmp_path.parent) == before


def understate(path: Path, name: str, size: int) -> None:
    """Make the directory of a zip claim that a member unpacks to `size` bytes."""
    content = bytearray(path.read_bytes())
    at = content.rindex(name.encode()) - 46  # the header of the directory's entry
    assert content[at : at + 4] == b"PK\x01\x02"
    content[at + 24 : at + 28] = struct.pack("<I", size)
    path.write_bytes(bytes(content))


def test_a_zip_bomb_that_understates_its_size_stays_small_in_memory(tmp_path: Path) -> None:
    name = "val/images/val_2.JPEG"
    path = write_zip(tmp_path / ZIP, {**tiny_members(), name: bytes(64 << 20)})
    understate(path, f"tiny-imagenet-200/{name}", 100)
    with small_in_memory(16 << 20), pytest.raises(DataError, match=r"val_2\.JPEG is damaged .*Delete"):
        tiny_of(tmp_path).prepare_data()
    assert contents(tmp_path / "dkel_cache") == {}


# .npz


def npy(shape: str, content: bytes = b"", kind: str = "|u1") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def npz_with(tmp_path: Path, **members: bytes) -> Path:
    """A good file but for these members, given as the bytes that lie in the zip."""
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in npz_arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", members.get(name, buffer.getvalue()))
    return path


NPZ_MEMBERS = {
    "terabytes claimed": (npy("(1000000, 1000, 1000)", bytes(10)), "claims 1000000000000 bytes, and 10 are there"),
    "too little claimed": (npy("(30, 2, 2)", bytes(5000)), "claims 120 bytes, and 5000 are there"),
    "a negative size": (npy("(-30, -8, 8)", bytes(1920)), "train_images cannot be read"),
    "no array": (b"just text", "train_images cannot be read .*magic string"),
    "nothing": (b"", "train_images cannot be read"),
    "an unknown version": (b"\x93NUMPY\x09\x00" + bytes(200), r"version \(9, 0\) of the format is unknown"),
    "an open header": (npy("(" * 300), "train_images cannot be read .*EOF in multi-line statement"),
    "code in the header": (npy("__import__('os').getpid()"), "train_images cannot be read"),
    "pickled objects": (
        npy("(30,)", b"cos\nsystem\n(S'false'\ntR.", "|O"),
        "train_images cannot be read .*plain array",
    ),
}


@pytest.mark.parametrize("case", NPZ_MEMBERS)
def test_an_npz_whose_header_lies_is_refused_before_memory_is_reserved(tmp_path: Path, case: str) -> None:
    content, message = NPZ_MEMBERS[case]
    path = npz_with(tmp_path, train_images=content)
    before = contents(tmp_path)
    with small_in_memory(), pytest.raises(DataError, match=rf"data\.npz: .*{message}"):
        npz_of(path).setup()
    assert contents(tmp_path) == before


def test_names_that_take_no_bytes_are_not_counted_out(tmp_path: Path) -> None:
    path = npz_with(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        member("class_names.npy", npy("(1000000000,)", kind="<U0"))(archive)
    with small_in_memory(), pytest.raises(DataError, match="class_names holds 1000000000 names for 30 training images"):
        npz_of(path).setup()


@pytest.mark.parametrize(
    "read", [lambda path: npz_of(path).setup(), image_folder.image_bytes, lambda path: tiny_of(path).prepare_data()]
)
def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with not_waited_for(), pytest.raises(DataError, match=r"pipe\.png"):
        read(tmp_path / "pipe.png")


@pytest.mark.parametrize("name", ["about.json", "train_images.npy", "test_labels.npy"])
def test_a_pipe_in_place_of_a_file_of_a_cache_is_damage_and_not_waited_for(name: str, tmp_path: Path) -> None:
    root = images(tmp_path)
    folder_of(root).prepare_data()
    before = folder_of(root).read().train.labels.tolist()
    (cache,) = (root / "dkel_cache").glob("image_folder-*")
    piped(cache / name)
    if name != "about.json":
        about = json.loads((cache / "about.json").read_text())
        del about["files"][name]  # of which it then says nothing
        (cache / "about.json").write_text(json.dumps(about))
    with not_waited_for():
        with pytest.raises(DataError, match="has no up-to-date image cache"):
            folder_of(root).read()
        folder_of(root).prepare_data()
    assert folder_of(root).read().train.labels.tolist() == before


def test_an_npz_bomb_is_refused_by_the_size_that_it_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = npz_arrays() | {"train_images": np.zeros((30, 1024, 1024), np.uint8)}
    np.savez_compressed(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    assert (tmp_path / "data.npz").stat().st_size < 1 << 20
    monkeypatch.setattr(npz, "free_host_memory", lambda: 40 << 20)
    with pytest.raises(DataError, match=r"data\.npz unpacks to 30 MiB, more than half of the free memory \(20 MiB\)"):
        npz_of(tmp_path / "data.npz").setup()


def test_an_npz_bomb_that_understates_its_size_stays_small_in_memory(tmp_path: Path) -> None:
    path = npz_with(tmp_path, train_images=npy("(30, 1024, 1024)", bytes(30 << 20)))
    understate(path, "train_images.npy", 128 + 1920)
    damage = pytest.raises(DataError, match=r"data\.npz: train_images cannot be read .*write the file again")
    with small_in_memory(), damage:
        npz_of(path).setup()


def test_an_array_that_is_in_the_file_twice_is_refused(tmp_path: Path) -> None:
    path = npz_with(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        member("train_labels.npy", npy("(30,)", bytes(30)))(archive)
    with pytest.raises(DataError, match=r"data\.npz: train_labels\.npy is there twice"):
        npz_of(path).setup()


# Images


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return encoded(image, "PNG", **({"transparency": 1} if transparent else {}))


def deep_png(*colour: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"\0" + struct.pack(">3H", *colour) * 64
    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(row * 64)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


SIZE = (64, 64)
ACCEPTED: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "grey": (image_bytes(90, mode="L"), (90, 90, 90)),
    "grey with alpha": (encoded(Image.new("LA", SIZE, (90, 7)), "PNG"), (90, 90, 90)),
    "black and white": (encoded(Image.new("1", SIZE, 1), "PNG"), (255, 255, 255)),
    "alpha": (encoded(Image.new("RGBA", SIZE, (200, 100, 50, 7)), "PNG"), (200, 100, 50)),
    "palette": (palette(False), (200, 100, 50)),
    "palette with a transparent colour": (palette(True), (200, 100, 50)),
    "CMYK": (encoded(Image.new("CMYK", SIZE, (55, 155, 205, 0)), "TIFF"), (200, 100, 50)),
    "YCbCr": (encoded(Image.new("RGB", SIZE, (90, 90, 90)), "JPEG"), (90, 90, 90)),
    "16 bits a colour, of which the upper 8": (deep_png(200 << 8 | 255, 100 << 8, 50 << 8 | 128), (200, 100, 50)),
    "a GIF called otherwise": (encoded(Image.new("L", SIZE, 90), "GIF"), (90, 90, 90)),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_images_of_every_kind_become_rgb(case: str) -> None:
    content, colour = ACCEPTED[case]
    for decoded in (decode_exact(content, "x.jpg", 64), decode_square(content, "x.jpg", 64)):
        assert decoded.shape == (3, 64, 64)
        assert decoded.dtype == np.uint8
        assert (decoded == np.array(colour)[:, None, None]).all()


def test_a_cmyk_photograph_becomes_rgb() -> None:
    decoded = decode_square(encoded(Image.new("CMYK", SIZE, (55, 155, 205, 0)), "JPEG", quality=100), "x.jpg", 8)
    assert np.abs(decoded.astype(int) - np.array([200, 100, 50])[:, None, None]).max() <= 3


def decode_square(content: bytes, name: str, size: int) -> NDArray[np.uint8]:
    return decode_to(content, name, (3, size, size))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(evil) run\nshowpage\n%%EOF\n"
REFUSED: dict[str, tuple[bytes, str]] = {
    "text": (b"not an image", "x.jpg is no readable image .*replace or remove it"),
    "empty": (b"", "x.jpg is no readable image"),
    "a web page": (b"<!DOCTYPE html><html></html>", "x.jpg is no readable image"),
    "half a JPEG": (encoded(Image.effect_noise(SIZE, 90), "JPEG")[:900], "x.jpg is no readable image .*truncated"),
    "half a PNG": (encoded(Image.effect_noise(SIZE, 90), "PNG")[:900], "x.jpg is no readable image"),
    "a program for Ghostscript": (EPS, "x.jpg is no readable image .*its format is not known"),
    "16 bits": (encoded(Image.new("I;16", SIZE, 999), "PNG"), r"x.jpg has more than 8 bits a channel \(mode I;16\)"),
    "floating point": (encoded(Image.new("F", SIZE, 0.5), "TIFF"), r"x.jpg has more than 8 bits a channel \(mode F\)"),
}


@pytest.mark.parametrize("decode", [decode_exact, decode_square])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_image_is_named(case: str, decode: Callable[[bytes, str, int], Any]) -> None:
    content, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        decode(content, "x.jpg", 64)


def bmp_that_claims(width: int, height: int) -> bytes:
    content = bytearray(image_bytes(0, form="BMP"))
    content[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(content)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_a_million_pixels_is_read_and_one_over_the_bound_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (decode_square(image_bytes(9, size=(1000, 1000)), "x.png", 8) == 9).all()
    assert (decode_square(image_bytes(9, size=(1_000_000, 1)), "x.png", 8) == 9).all()
    decoded: list[tuple[int, int]] = []

    def load(image: ImageFile.ImageFile) -> None:
        decoded.append(image.size)
        raise OSError("truncated")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    width = MOST_PIXELS // 9459
    for size, message in (
        ((width + 1, 9459), rf"x\.bmp claims {width + 1}x9459 pixels, more than {MOST_PIXELS}: remove or shrink it"),
        ((1_000_000, 1000), r"x\.bmp is no readable image .*could be decompression bomb"),
        ((width, 9459), r"x\.bmp is no readable image \(truncated\)"),
    ):
        with pytest.raises(DataError, match=message):
            decode_square(bmp_that_claims(*size), "x.bmp", 8)
    assert decoded == [(width, 9459)]


# Folders


def pipe(root: Path) -> None:
    os.mkfifo(root / "train/a/9.png")


ACCENTED = ("e\u0301t\u00e9", "\u00e9t\u00e9")

FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no train": (lambda r: (r / "train").rename(r / "training"), "has no folder train"),
    "no test": (lambda r: (r / "test").rename(r / "testing"), "has neither a folder test nor val"),
    "empty class": (
        lambda r: [path.unlink() for path in (r / "train/a").iterdir()],
        r"train/a holds no image .*add some or remove it",
    ),
    "other classes": (
        lambda r: (r / "test/a").rename(r / "test/dog"),
        "must hold the same classes; only one has a, dog",
    ),
    "no image": (lambda r: (r / "train/a/1.png").write_text("text"), r"train/a/1\.png is no readable image"),
    "a pipe": (pipe, r"train/a/9\.png is no regular file but a pipe, socket or device: remove it"),
    "a broken link": (
        lambda r: (r / "train/a/9.png").symlink_to("nowhere.png"),
        r"train/a/9\.png cannot be read \(No such file or directory\): check that it is there",
    ),
    "a device": (lambda r: (r / "train/a/9.png").symlink_to("/dev/zero"), r"9\.png is no regular file"),
    "a circle of links": (
        lambda r: (r / "train/a/again").symlink_to(r / "train"),
        r"train/a/again is a link to a folder that is read already: remove the link",
    ),
    "classes alike": (
        lambda r: [write_folder(r, {f"{s}/A/0.png": image_bytes(0)}) for s in ("train", "test")],
        r"train: the class 'a' and 'A' differ only in capitals; rename one or merge them",
    ),
    "one accented name in two spellings": (
        lambda r: [write_folder(r, {f"{s}/{c}/0.png": image_bytes(0)}) for s in ("train", "test") for c in ACCENTED],
        r"differ only in the spelling of accents \('e\\u0301t\\xe9', '\\xe9t\\xe9'\); rename one or merge them",
    ),
    "a class that is a file": (
        lambda r: [(r / s / "c").write_bytes(b"") or write_folder(r, {"test/d/0.png": b""}) for s in ("train",)],
        "must hold the same classes; only one has d",
    ),
    "train is a file": (
        lambda r: (r / "train").rename(r / "old") and (r / "train").write_text("text"),
        "has no folder train",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_images_with_something_alien_is_refused(tmp_path: Path, case: str) -> None:
    spoil, message = FOLDERS[case]
    root = images(tmp_path)
    folder_of(root).prepare_data()
    spoil(root)
    before = contents(root)
    with pytest.raises(DataError, match=message):
        folder_of(root).prepare_data()
    assert contents(root) == before


def test_links_to_images_and_classes_are_read_and_watched(tmp_path: Path) -> None:
    root = images(tmp_path)
    (root / "train/a").rename(tmp_path / "elsewhere")
    (root / "train/a").symlink_to(tmp_path / "elsewhere")
    (root / "train/b/9.png").symlink_to(tmp_path / "elsewhere/0.png")
    write_folder(root, {"train/a/.checkpoints/7.png": b"hidden"})
    folder_of(root).prepare_data()
    assert folder_of(root).read().train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 0]
    (tmp_path / "elsewhere/5.png").write_bytes(image_bytes(5))
    folder_of(root).prepare_data()
    assert len(folder_of(root).read().train) == 8


def test_an_image_that_is_annotated_twice_is_refused(tmp_path: Path) -> None:
    members = tiny_members()
    members["val/val_annotations.txt"] += b"\nval_0.JPEG\tn01\t0"
    write_zip(tmp_path / ZIP, members)
    with pytest.raises(DataError, match=r"line 6 of val/val_annotations\.txt names the image 'val_0\.JPEG' a second"):
        tiny_of(tmp_path).prepare_data()


# What may not be read or written


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's rights for a while, where the tests have them: root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def own(root: Path) -> None:
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


def prepare_folder(root: Path) -> None:
    folder_of(root / "images").prepare_data()


def prepare_zip(root: Path) -> None:
    tiny_of(root).prepare_data()


def make_zip(root: Path) -> None:
    write_zip(root / ZIP, tiny_members())


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str, Callable[[Path], Any]]] = {
    "image": (images, "images/train/a/1.png", prepare_folder),
    "class": (images, "images/train/b", prepare_folder),
    "training images": (images, "images/train", prepare_folder),
    "whole folder": (images, "images", prepare_folder),
    "zip": (make_zip, ZIP, prepare_zip),
    "npz": (npz_with, "data.npz", lambda root: npz_of(root / "data.npz").setup()),
}


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may walk into and write to, other than pytest's own."""
    # What is imported on first use may lie where nobody may not look: use everything once before.
    for make, _, read in UNREADABLE.values():
        make(tmp_path)
        read(tmp_path)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own folders are closed to nobody
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_may_not_be_read_is_named(open_folder: Path, case: str) -> None:
    make, spoilt, read = UNREADABLE[case]
    make(open_folder)
    own(open_folder)
    (open_folder / spoilt).chmod(0)
    message = rf"{open_folder / spoilt}\S* cannot be read \(Permission denied\): check that"
    with pytest.raises(DataError, match=message), as_nobody():
        read(open_folder)
    (open_folder / spoilt).chmod(0o755)
    with as_nobody():
        read(open_folder)


def test_cifar_that_may_not_be_read_is_named(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar("CIFAR10", open_folder, monkeypatch)
    cifar_of(open_folder).prepare_data()
    own(open_folder)
    (open_folder / "cifar-10-batches-py/data_batch_2").chmod(0)
    for use in (lambda: cifar_of(open_folder).prepare_data(), lambda: cifar_of(open_folder).read()):
        with pytest.raises(DataError, match=r"data_batch_2 cannot be read \(Permission denied\)"), as_nobody():
            use()


@pytest.mark.parametrize(("make", "prepare"), [(images, prepare_folder), (make_zip, prepare_zip)])
def test_a_place_that_may_not_be_written_is_named_unless_the_cache_is_there(
    open_folder: Path, make: Callable[[Path], Any], prepare: Callable[[Path], Any]
) -> None:
    make(open_folder)
    own(open_folder)
    places = [open_folder, *(path for path in open_folder.rglob("*") if path.is_dir())]
    for place in places:
        place.chmod(0o555)
    with pytest.raises(DataError, match=r"dkel_cache cannot be written to .*choose a folder that can"), as_nobody():
        prepare(open_folder)
    for place in places:
        place.chmod(0o777)
    with as_nobody():
        prepare(open_folder)
    for place in open_folder.rglob("*"):
        place.chmod(0o555)
    with as_nobody():
        prepare(open_folder)


# A full disk, a killed run, several runs at once


@pytest.fixture(name="small_disk")
def small_disk_(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with 256 KiB."""
    with small_disk(tmp_path / "disk", "256k") as place:
        yield place


def test_a_full_disk_keeps_the_old_cache_whole(tmp_path: Path) -> None:
    root = images(tmp_path)
    folder_of(root, 64).prepare_data()
    (root / "train/a/9.png").write_bytes(image_bytes(9))
    before = contents(root)
    message = r"image_folder-64-\w+ cannot be written .*MiB of free disk; make room"
    with pytest.raises(DataError, match=message), file_size_limit(20_000):
        folder_of(root, 64).prepare_data()
    assert contents(root) == before
    folder_of(root, 64).prepare_data()
    assert len(folder_of(root, 64).read().train) == 7


@as_root
def test_a_disk_that_is_really_full_keeps_the_old_cache_whole(tmp_path: Path, small_disk: Path) -> None:
    root = images(tmp_path)
    folder_of(root, 64, small_disk).prepare_data()  # 8 images of 12 KiB each
    before = contents(small_disk)
    for k in range(10, 20):
        (root / f"train/a/{k}.png").write_bytes(image_bytes(k))
    with pytest.raises(DataError, match=r"cannot be written \(\[Errno 28\] No space left on device.*make room, or set"):
        folder_of(root, 64, small_disk).prepare_data()
    assert contents(small_disk) == before
    folder_of(root, 64, tmp_path / "roomy").prepare_data()
    assert len(folder_of(root, 64, tmp_path / "roomy").read().train) == 16


@as_root
def test_cifar_on_a_full_disk_leaves_the_archive_alone(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar("CIFAR10", small_disk, monkeypatch)  # unpacks to 190 KiB
    filler = small_disk / "filler"
    filler.write_bytes(bytes(150_000))
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz cannot be unpacked .*No space left.*make room"):
        cifar_of(small_disk).prepare_data()
    filler.unlink()
    cifar_of(small_disk).prepare_data()
    assert len(cifar_of(small_disk).read().train) == 50


def die_at(call: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does what `original` does, and kills its process the n-th time."""
    calls = iter(range(call))

    def deadly(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return deadly


# The first image, in the middle, all decoded, and all written but not yet renamed.
@pytest.mark.parametrize("when", ["first", "middle", "labels", "rename"])
def test_a_preparation_that_is_killed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    root = images(tmp_path)
    folder_of(root, 64).prepare_data()
    (old,) = (root / "dkel_cache").glob("image_folder-*")
    whole = contents(old)
    (root / "train/a/9.png").write_bytes(image_bytes(9))
    monkeypatch.setattr(cache_module, "_CHUNK_BYTES", 2 * 64 * 64 * 3)
    with monkeypatch.context() as patched:
        if when in ("first", "middle"):
            patched.setattr(image_folder, "decode_to", die_at({"first": 0, "middle": 5}[when], decode_to))
        elif when == "labels":
            patched.setattr(np, "save", die_at(1, np.save))
        else:
            patched.setattr(Path, "rename", die_at(0, Path.rename))
        assert in_a_child(lambda: folder_of(root, 64).prepare_data()) == -signal.SIGKILL
    assert contents(old) == whole
    assert len(list((root / "dkel_cache").glob(".*.tmp"))) == 1
    folder_of(root, 64).prepare_data()
    assert folder_of(root, 64).read().train.images[:, 0, 5, 5].tolist() == [0, 1, 2, 9, 10, 11, 12]
    assert [path.name for path in (root / "dkel_cache").glob(".*.tmp")] == []


@pytest.mark.parametrize("call", [0, 3])
def test_an_unpacking_that_is_killed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    fake_cifar("CIFAR10", tmp_path, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "makefile", die_at(call, tarfile.TarFile.makefile))
        assert in_a_child(lambda: cifar_of(tmp_path).prepare_data()) == -signal.SIGKILL
    cifar_of(tmp_path).prepare_data()
    assert len(cifar_of(tmp_path).read().train) == 50


@pytest.mark.parametrize(("data", "count"), [("folder", 6), ("tinyimagenet", 6), ("cifar", 50)])
def test_runs_that_prepare_the_same_data_at_once_all_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, count: int
) -> None:
    context = multiprocessing.get_context("fork")
    start, counted = context.Barrier(4), context.Value("i", 0)
    owner: Any = cache_module.ImageCache
    name = "write"
    if data == "folder":
        module: Any = folder_of(images(tmp_path), 64)
    elif data == "tinyimagenet":
        module = tiny_of(write_zip(tmp_path / ZIP, tiny_members()))
    else:
        module = cifar_of(fake_cifar("CIFAR10", tmp_path, monkeypatch).parent)
        owner, name = cifar, "_unpack"
    original = getattr(owner, name)

    def counting(*args: Any) -> None:
        with counted.get_lock():
            counted.value += 1
        original(*args)

    def work() -> None:
        start.wait(60)
        module.prepare_data()

    monkeypatch.setattr(owner, name, counting)
    processes = [context.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert counted.value == 1
    assert len(module.read().train) == count


# More images than memory


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts mapped memory on Linux only")
def test_a_set_larger_than_memory_is_prepared_and_passed_through(tmp_path: Path) -> None:
    """200 MB of images with 60 MiB to spare; loading them whole must not fit, or this would prove nothing."""
    command = [sys.executable, str(Path(__file__).parent / "stream.py"), str(tmp_path)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["streamed 2600 training images", "loaded whole: out of memory"]
