"""What an exported file says of itself: which network it is and how its images are prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dkel_lightning.data.augment import Normalize
from dkel_lightning.errors import CheckpointError
from dkel_lightning.runtime.atomic_files import digest, text_of

KEY = "dkel_lightning"
"""Under which a file holds its record, in ONNX and safetensors metadata; `.pt2` archives have it as a file."""
FORMAT = 1
RECORD = "export.json"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input.

    It is scaled until it just covers `margin` times the input's size (bilinear, antialiased, as Pillow does it), that
    size is cut from its centre, turned to RGB (to grey for one channel), scaled to [0, 1] and normalised.

    Attributes:
        channels: 1 or 3 for image files; other numbers come from arrays.
        height: in pixels.
        width: in pixels.
        mean: of each channel, of values in [0, 1].
        std: likewise.
        classes: names in the order of the logits; empty where unknown.
        margin: 8/7 where an image is scaled to 256 pixels and 224 of them are cut.
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
        """Name a class, by its number where names are unknown."""
        return self.classes[index] if index < len(self.classes) else str(index)

    def as_dict(self) -> dict[str, Any]:
        """Return primitives, with the steps in words."""
        width, height = round(self.width * self.margin), round(self.height * self.margin)
        steps = (
            f"scale until the image just covers {width}x{height} (Pillow, bilinear), cut {self.width}x{self.height} "
            f"from its centre, {'grey' if self.channels == 1 else 'RGB'}, "
            "divide by 255, subtract mean, divide by std; float32 [batch, channels, height, width]"
        )
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**own, "steps": steps}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read what `as_dict` wrote.

        Raises:
            CheckpointError: something is missing or of the wrong kind.
        """
        try:
            channels, height, width = (int(values[name]) for name in ("channels", "height", "width"))
            mean, std = (tuple(float(item) for item in values[name]) for name in ("mean", "std"))
            classes, margin = tuple(str(item) for item in values.get("classes", ())), float(values.get("margin", 1.0))
            found = cls(channels, height, width, mean, std, classes, margin)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"The recorded preprocessing cannot be read ({error}): export again.") from error
        fits = len(found.mean) == len(found.std) == found.channels and min(found.shape) > 0 and all(found.std)
        if not (fits and 1 <= found.margin <= 2):
            raise CheckpointError("The recorded preprocessing contradicts itself: export again.")
        return found


@dataclass(frozen=True)
class Record:
    """What an exported file holds beside its weights.

    Attributes:
        format: one of FORMATS.
        member: the exported member, such as `teacher_1`.
        num_classes: C.
        preprocessing: of its images.
        recipe: what rebuilds the networks by name; None where the backbone or method was the user's own.
    """

    format: str
    member: str
    num_classes: int
    preprocessing: Preprocessing
    recipe: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return primitives."""
        return {
            "version": FORMAT,
            "format": self.format,
            "member": self.member,
            "num_classes": self.num_classes,
            "preprocessing": self.preprocessing.as_dict(),
            "recipe": None if self.recipe is None else dict(self.recipe),
        }

    def as_text(self) -> str:
        """Return the same as JSON in one line, for the metadata of a file."""
        return json.dumps(self.as_dict(), sort_keys=True)

    @classmethod
    def from_text(cls, text: str | None, path: Path) -> Record:
        """Read what `as_text` wrote; further keys are left alone.

        Raises:
            CheckpointError: it is missing, damaged or of a newer version.
        """
        try:
            values = json.loads(text or "")
            version = int(values["version"])
            member, kind, classes = str(values["member"]), str(values["format"]), int(values["num_classes"])
            preprocessing, recipe = values["preprocessing"], values["recipe"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not say how its images are prepared: it was not written by task=export."
            ) from error
        if version > FORMAT:
            raise CheckpointError(f"{path} is of version {version}, this reads 1 to {FORMAT}: update dkel_lightning.")
        return cls(kind, member, classes, Preprocessing.from_dict(preprocessing), recipe)


def backbone_of(recipe: Mapping[str, Any] | None, member: str) -> str:
    """Name the network that a member is, as `build` takes it; several of an ensemble, none of a user's own."""
    recipe = recipe or {}
    network, _, number = member.partition("_")
    if network == "teacher" and (own := recipe.get("teacher", {}).get("backbone")):
        return str(own)
    peers = recipe.get("peers")
    if isinstance(peers, list):
        return peers[int(number)] if number.isdecimal() else ", ".join(peers)
    return str(recipe.get("backbone") or "")


def files_of(folder: Path) -> dict[str, str]:
    """Read which files an export has written, with their SHA-256.

    Raises:
        CheckpointError: the record is not as it was written.
    """
    record = folder / RECORD
    try:
        return dict(json.loads(text_of(record))["files"] if record.is_file() else {})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{record} is damaged ({error}): export again.") from error


def check_files(folder: Path) -> None:
    """Hold the files of an export against the hashes in its record, where that lies beside them.

    Raises:
        CheckpointError: one of them, or the record, is not as it was written.
    """
    files = files_of(folder)
    try:
        wrong = [
            name for name, sha in files.items() if (folder / name).is_file() and digest(folder / name, "sha256") != sha
        ]
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / RECORD} is damaged ({error}): export again.") from error
    if wrong:
        raise CheckpointError(
            f"{folder / wrong[0]} is damaged or was edited (its SHA-256 is not that of {RECORD}): export again."
        )


@dataclass(frozen=True)
class Agreement:
    """How far an exported file is from the training network.

    Attributes:
        images: real images on which both were asked.
        largest_difference: of any two logits.
        largest_logit: of the training network, by absolute value.
        same_class: images of which both name the same class.
        tolerance: what was allowed, times the largest logit where that exceeds 1.
    """

    images: int
    largest_difference: float
    largest_logit: float
    same_class: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the difference is allowed; NaN is not."""
        return self.largest_difference <= self.tolerance * max(1.0, self.largest_logit)


@dataclass(frozen=True)
class Facts:
    """What the model card says beyond what the networks tell; each a heading's lines, `name: text`.

    Attributes:
        metrics: figures of the test by the Hub's names of metrics, for its metadata.
    """

    title: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, str] = field(default_factory=dict)
    accuracy: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
