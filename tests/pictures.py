"""Folders of images as readers have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_noise(folder: Path, train: int, test: int, size: int = 12, classes: tuple[str, ...] = ("one", "two")) -> None:
    """Write pictures of noise, so many a class: `train/<class>/<number>.png` and the same below `test`."""
    draws = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
