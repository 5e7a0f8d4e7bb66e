"""`export.json`: the exported network and its preprocessing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dkel_lightning.data.augment import Normalize
from dkel_lightning.errors import CheckpointError

RECORD = "export.json"


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images for the network.

    The shorter side is resized to `margin` times the input's size (Pillow's antialiased bilinear filter); the centre is
    cropped, converted to RGB (grey for one channel), scaled to [0, 1] and normalised.

    Attributes:
        channels: 1 or 3 for image files.
        height: in pixels.
        width: in pixels.
        mean: of each channel of images in [0, 1].
        std: deviation of each channel of images in [0, 1].
        classes: names in the order of the logits; empty if unknown.
        margin: size of the resized image relative to the crop, such as 8/7 for 256 and 224 pixels.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    margin: float = 1.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.height, self.width

    def normalised(self, images: Tensor) -> Tensor:
        """Turn uint8 images [B, C, H, W] into the network's input."""
        return Normalize(self.mean, self.std)(images)

    def name(self, index: int) -> str:
        """Return the name of a class, or its number."""
        return self.classes[index] if index < len(self.classes) else str(index)

    @property
    def steps(self) -> str:
        """The steps in words."""
        width, height = round(self.width * self.margin), round(self.height * self.margin)
        return (
            f"scale until the image just covers {width}x{height} (Pillow, bilinear), crop {self.width}x{self.height} "
            f"at its centre, convert to {'grey' if self.channels == 1 else 'RGB'}, divide by 255, subtract "
            f"{[*self.mean]}, divide by {[*self.std]}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return primitives, with the steps in words."""
        return {**asdict(self), "steps": self.steps}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read what `as_dict` has written."""
        mean, std, classes = (tuple(values[name]) for name in ("mean", "std", "classes"))
        return cls(values["channels"], values["height"], values["width"], mean, std, classes, values["margin"])


@dataclass(frozen=True)
class Record:
    """Content of `export.json`.

    Attributes:
        format: one of FORMATS.
        file: name of the file that holds the network.
        member: the exported member, such as `teacher_1`.
        num_classes: C.
        preprocessing: of the images.
        recipe: arguments of `DistillationModule.build`; None if backbone or method was the user's own.
    """

    format: str
    file: str
    member: str
    num_classes: int
    preprocessing: Preprocessing
    recipe: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return primitives."""
        return {**vars(self), "preprocessing": self.preprocessing.as_dict()}

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the `export.json` of a folder."""
        path = folder / RECORD
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            fields = {name: values[name] for name in ("format", "file", "member", "num_classes", "recipe")}
            return cls(preprocessing=Preprocessing.from_dict(values["preprocessing"]), **fields)
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{path} is missing or damaged ({reason}): export the network again.") from error
