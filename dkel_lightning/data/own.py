"""Attributes that tasks need from any `LightningDataModule`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from lightning.pytorch import LightningDataModule

from dkel_lightning.data.augment import Normalize
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.data import FACTS
from dkel_lightning.settings.declarations import import_path


class ClassificationData(LightningDataModule):
    """Attributes that tasks read after `setup`.

    Attributes:
        num_classes: C.
        class_names: Names of the C classes.
        image_shape: (channels, height, width).
        normalize: The normalisation of uint8 images; None if unknown.
        batch_keys: Names of images, labels and indices in batches that are mappings; None: the defaults.
        margin: Size of a resized evaluation image relative to its central crop.
        broken: The errors of images that were left out, by name.
    """

    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    normalize: Normalize | None
    batch_keys: Mapping[str, str] | None = None
    margin: float = 1.0
    broken: Mapping[str, str] = MappingProxyType({})


def parameters(kind: type[LightningDataModule]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a data module by name, including those passed to parent classes."""
    result: dict[str, inspect.Parameter] = {}
    for parent in kind.__mro__[: kind.__mro__.index(LightningDataModule)]:
        if "__init__" not in vars(parent):
            continue
        signature = list(inspect.signature(vars(parent)["__init__"]).parameters.values())[1:]  # without self
        for item in signature:
            if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD):
                result.setdefault(item.name, item)
        if not any(item.kind is item.VAR_KEYWORD for item in signature):
            break
    return result


def complete(module: LightningDataModule, settings: Mapping[str, Any]) -> ClassificationData:
    """Set missing attributes of `ClassificationData` from settings of the same names."""
    given = {name: getattr(module, name, None) for name in FACTS}
    facts: dict[str, Any] = {name: settings.get(name) if value is None else value for name, value in given.items()}
    kind = import_path(type(module))
    for name, form in (("num_classes", "10"), ("image_shape", "[3,32,32]")):
        if facts[name] is None:
            raise ConfigError(f"{kind} has no attribute {name}: add it, or set data.{name}={form}.")
    names = tuple(map(str, facts["class_names"] or range(facts["num_classes"])))
    if len(names) != facts["num_classes"]:
        raise ConfigError(f"data.class_names has {len(names)} names for {facts['num_classes']} classes.")
    normalize = None if facts["mean"] is None or facts["std"] is None else Normalize(facts["mean"], facts["std"])
    facts |= {"image_shape": tuple(facts["image_shape"]), "class_names": names, "normalize": normalize}
    for name, value in facts.items():
        if getattr(module, name, None) is None:  # an existing one may be a property
            setattr(module, name, value)
    return cast("ClassificationData", module)


def describe_sizes(module: LightningDataModule) -> str:
    """Format the known numbers of training, validation and test images."""
    words = {"train": "training", "val": "validation", "test": "test"}
    counts = {word: size(module, split) for split, word in words.items()}
    unlabelled = getattr(module, "unlabelled_size", 0)
    notes = {"training": f", {unlabelled:,} of them without labels"} if unlabelled else {}
    return ", ".join(f"{n:,} {word}{notes.get(word, '')}" for word, n in counts.items() if n is not None)


def size(module: LightningDataModule, split: str) -> int | None:
    """Return the number of images of `train`, `val` or `test`; None if unknown."""
    count = getattr(module, f"{split}_size", None)
    if isinstance(count, int):
        return count
    try:
        return len(getattr(module, f"{split}_dataloader")().dataset)
    except Exception:  # loaders may be of any kind
        return None
