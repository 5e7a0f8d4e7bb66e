"""Turning the bytes of an image file into an array, or into an error that names the file; at once, or at each use."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dkel_lightning.data.imageset import Images
from dkel_lightning.errors import DataError

# Where Pillow begins to warn of a decompression bomb; a photograph has a tenth of this.
MOST_PIXELS = 89_478_485
_REFUSED_MODES = ("I", "F")
# By content, whatever a file is called. Pillow would also try formats that start other programs (EPS) or are rare
# enough to be little tested.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def decode_exact(data: bytes, name: str, size: int) -> NDArray[np.uint8]:
    """Return an image that must measure `size` by `size` as uint8 RGB `[3, size, size]`; grey becomes RGB.

    Raises:
        DataError: It cannot be decoded, has another size, or more than 8 bits in its one channel.
    """
    with _opened(data, name) as image:
        if image.size != (size, size):
            raise DataError(f"{name} measures {image.size[0]}x{image.size[1]} pixels, not {size}x{size}")
        _refuse_deep(image, name)
        return _rgb(image)


def decode_to(data: bytes, name: str, shape: tuple[int, int, int], margin: float = 1.0) -> NDArray[np.uint8]:
    """Return the largest central part of an image with the proportions of `shape`, scaled to it, uint8 `[C, H, W]`.

    C is 3 for RGB or 1 for grey. Cropping first gives what "resize the shorter side, then crop the centre" gives, and
    cannot blow up a thin image. With a `margin` it is scaled to that many times the size, whose centre is cut.

    Raises:
        DataError: It cannot be decoded, is absurdly large, or has more than 8 bits in its one channel.
    """
    channels, height, width = shape
    scaled_width, scaled_height = round(width * margin), round(height * margin)
    over, above = (scaled_width - width) // 2, (scaled_height - height) // 2
    with _opened(data, name) as image:
        own_width, own_height = image.size
        _refuse_large(image, name)
        _refuse_deep(image, name)
        cut_width = min(own_width, max(1, own_height * width // height))
        cut_height = min(own_height, max(1, own_width * height // width))
        left, top = (own_width - cut_width) // 2, (own_height - cut_height) // 2
        box = (left, top, left + cut_width, top + cut_height)
        rgb = image.convert("RGB").resize((scaled_width, scaled_height), Image.Resampling.BILINEAR, box=box)
        rgb = rgb.crop((over, above, over + width, above + height))
        return _rgb(rgb) if channels == 3 else np.asarray(rgb.convert("L"), dtype=np.uint8)[None]


def decode_rgb(data: bytes, name: str) -> NDArray[np.uint8]:
    """Return a whole image as uint8 RGB `[3, H, W]`.

    Raises:
        DataError: As for `decode_to`.
    """
    with _opened(data, name) as image:
        _refuse_large(image, name)
        _refuse_deep(image, name)
        return np.ascontiguousarray(_rgb(image))


class EncodedImages:
    """Encoded images as an array, uint8 `[N, 3, size, size]`: each is decoded where it is indexed, as `decode_to` does.

    Args:
        count: N.
        size: Height and width.
        encoded: Gives the bytes of an image by its number, and what to call it; workers get a copy.
        margin: As in `decode_to`.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, count: int, size: int, encoded: Callable[[int], tuple[bytes, str]], margin: float = 1.0) -> None:
        self.shape = (count, 3, size, size)
        self.size = count * 3 * size * size
        self.encoded = encoded
        self.margin = margin

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        indices = range(len(self))[chosen] if isinstance(chosen, slice) else chosen.tolist()
        return np.stack([decode_to(*self.encoded(index), self.shape[1:], self.margin) for index in indices])

    def original(self, index: int) -> NDArray[np.uint8]:
        """Return a whole image, uint8 `[3, H, W]`."""
        return decode_rgb(*self.encoded(index))


def encoded_images(
    labels: Sequence[int] | NDArray[np.int64],
    size: int,
    encoded: Callable[[int], tuple[bytes, str]],
    margin: float = 1.0,
) -> Images:
    """Give the split of these labels, its images as `EncodedImages`."""
    array = cast("NDArray[np.uint8]", EncodedImages(len(labels), size, encoded, margin))
    return Images(array, np.asarray(labels, dtype=np.int64))


_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # raised where the user turns warnings into errors
)


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            yield image
    except _UNREADABLE as error:
        # Pillow names the stream that it was given, which says nothing.
        why = "its format is not known" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} is no readable image ({why}): replace or remove it") from error


def _refuse_large(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DataError(f"{name} claims {width}x{height} pixels, more than {MOST_PIXELS}: remove or shrink it")


def _refuse_deep(image: Image.Image, name: str) -> None:
    if image.mode.startswith(_REFUSED_MODES):
        raise DataError(f"{name} has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits")


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB"), dtype=np.uint8)
    return pixels.transpose(2, 0, 1)
