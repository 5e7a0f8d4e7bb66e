"""Image files as uint8 arrays, decoded once into a memory-mapped file or at each use."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from dkel_lightning.errors import ConfigError, DataError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CACHE_FOLDER = "dkel_cache"
# By content. Pillow's other formats are rare, and EPS would start Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_CHUNK = 1024


def decode_to(data: bytes, name: str, shape: tuple[int, int, int], margin: float = 1.0) -> NDArray[np.uint8]:
    """Resize the shorter side of an image and crop the centre to `shape`: uint8 `[C, H, W]`, C 3 (RGB) or 1 (grey).

    With a `margin` the image is resized to that many times the size first.
    """
    channels, height, width = shape
    scaled_width, scaled_height = round(width * margin), round(height * margin)
    left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
    with _opened(data, name) as image:
        cut_width = min(image.width, max(1, image.height * width // height))
        cut_height = min(image.height, max(1, image.width * height // width))
        x, y = (image.width - cut_width) // 2, (image.height - cut_height) // 2
        scaled = image.convert("RGB").resize(
            (scaled_width, scaled_height), Image.Resampling.BILINEAR, box=(x, y, x + cut_width, y + cut_height)
        )
        crop = scaled.crop((left, top, left + width, top + height))
        return np.asarray(crop).transpose(2, 0, 1) if channels == 3 else np.asarray(crop.convert("L"))[None]


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    try:
        try:
            opened = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"not one of {', '.join(_FORMATS)}") from None
        with opened as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip it to white
                raise ValueError("more than 8 bits per channel: convert it to 8 bits")
            yield image
    except Exception as error:  # decoders raise errors of many kinds
        raise DataError(f"{name} is not a readable image ({error}): replace or remove it") from error


class EncodedImages:
    """Encoded images as an array, uint8 `[N, 3, size, size]`, each decoded by `decode_to` when it is indexed.

    Args:
        count: N.
        size: Height and width.
        encoded: Returns the bytes of an image, and its name for messages; each worker gets a copy.
        margin: As in `decode_to`.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, count: int, size: int, encoded: Callable[[int], tuple[bytes, str]], margin: float = 1.0) -> None:
        self.shape = (count, 3, check_image_size(size), size)
        self.size = self.nbytes = count * 3 * size * size
        self.encoded = encoded
        self.margin = margin

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        indices = np.arange(len(self))[chosen].tolist()
        return np.stack([decode_to(*self.encoded(index), self.shape[1:], self.margin) for index in indices])

    def original(self, index: int) -> NDArray[np.uint8]:
        """Return a whole image, uint8 `[3, H, W]`."""
        with _opened(*self.encoded(index)) as image:
            return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


class Cache:
    """Decoded images of a list of files in one `.npy` file, which every process maps into memory.

    Its name contains a hash of the names, sizes and times of the files, so a changed file makes a new cache. Unreadable
    files are left out and listed in a JSON file.

    Args:
        folder: Folder of the cache.
        files: The image files.
        root: Folder of the files; the cache stays valid if it is moved.
        size: Height and width of the decoded images.
    """

    def __init__(self, folder: Path, files: Sequence[str], root: Path, size: int) -> None:
        self.files = files
        self.root = root
        self.shape = (3, check_image_size(size), size)
        facts = [(self.short(name), *_size_and_time(Path(name))) for name in files]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self.path = folder / f"{size}px-{digest}.npy"

    def short(self, name: str) -> str:
        """Return the name of a file below the root."""
        return os.path.relpath(name, self.root)

    def prepare(self) -> None:
        """Decode the files unless the cache exists. It appears only when it is complete."""
        if self.path.exists():  # before the lock, since the folder may be read-only
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        with FileLock(self.path.with_suffix(".lock")), ThreadPoolExecutor() as pool:
            if self.path.exists():
                return
            broken: dict[str, str] = {}
            with partial.open("wb") as file:  # plain writes: filling a memory map on a full disk kills the process
                self._write_header(file, 0)
                starts = range(0, len(self.files), _CHUNK)
                for start in track(starts, f"decoding into {self.path}", disable=not sys.stdout.isatty()):
                    chunk = self.files[start : start + _CHUNK]
                    for name, image in zip(chunk, pool.map(self._decode, chunk), strict=True):
                        if isinstance(image, DataError | FileNotFoundError):
                            broken[self.short(name)] = str(image.__cause__ or image)
                        else:
                            file.write(image.tobytes())
                file.seek(0)
                self._write_header(file, len(self.files) - len(broken))
            if broken:
                self.path.with_suffix(".json").write_text(json.dumps(broken, indent=1), encoding="utf-8")
            partial.replace(self.path)

    def load(self) -> NDArray[np.uint8]:
        """Return the memory-mapped images, uint8 `[N, 3, size, size]`, in the order of the readable files."""
        if not self.path.exists():
            raise DataError(f"no cache {self.path} of the current images: call prepare_data() first")
        images: NDArray[np.uint8] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return images

    def broken(self) -> dict[str, str]:
        """Return the error of each unreadable file, by its name below the root."""
        path = self.path.with_suffix(".json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _write_header(self, file: BinaryIO, images: int) -> None:
        """Write the header of an `.npy` file; numpy pads it, so its length does not depend on the number of images."""
        header = {"descr": "|u1", "fortran_order": False, "shape": (images, *self.shape)}
        np.lib.format.write_array_header_1_0(file, header)

    def _decode(self, name: str) -> NDArray[np.uint8] | DataError | FileNotFoundError:
        try:
            return decode_to(Path(name).read_bytes(), name, self.shape)
        except (DataError, FileNotFoundError) as error:
            return error


def _size_and_time(file: Path) -> tuple[int, int]:
    if not file.exists():  # a link to nothing
        return -1, 0
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def check_image_size(size: int) -> int:
    """Refuse a size that is not a whole number above 0."""
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"data.image_size must be a whole number above 0, got {size!r}.")
    return size
