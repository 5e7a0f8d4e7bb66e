"""Data modules of a user: their arguments, and what tasks need to know about their images.

`app/cli` registers the class that `data=NAME` or `data._target_=PATH` names, with its arguments (`defaults`) and the
`FACTS` as keys of `data`. `app/build` builds it from them (`arguments`). After `setup`, `complete` takes the facts from
its attributes or else from these keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from lightning.pytorch import LightningDataModule

from dkel_lightning.data.augment import Normalize
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.data import FACTS
from dkel_lightning.settings.declarations import import_path


class ClassificationData(LightningDataModule):
    """What tasks need from data, after `setup`.

    Attributes:
        num_classes: C.
        class_names: Names of the C classes.
        image_shape: (channels, height, width).
        normalize: The normalisation from uint8 images to those of the batches; None if unknown.
        batch_keys: Keys of images, labels and indices in batches that are mappings, if they are not the usual ones.
        margin: Size of a scaled evaluation image relative to its central crop.
        broken: What is wrong with each image that was left out, by its name.
    """

    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    normalize: Normalize | None
    batch_keys: Mapping[str, str] | None = None
    margin: float = 1.0
    broken: Mapping[str, str] = MappingProxyType({})


def parameters(kind: type[LightningDataModule]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a data module by name, including those that it passes to its parents."""
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


def defaults(kind: type[LightningDataModule]) -> dict[str, Any]:
    """Return the arguments that a configuration can hold, with their defaults; None for a required one.

    `seed` and `views` come from the run and are left out.
    """
    items = {name: item for name, item in parameters(kind).items() if name not in ("seed", "views")}
    plain = {name: None if item.default is item.empty else _plain(item.default) for name, item in items.items()}
    return {name: value for name, value in plain.items() if value is not _NOT_PLAIN}


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return _NOT_PLAIN if _NOT_PLAIN in items else items
    return _NOT_PLAIN


def arguments(
    kind: type[LightningDataModule], settings: Mapping[str, Any], of_run: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `kind`: those in `settings`, and those that it takes of the run's `of_run`."""
    takes = parameters(kind)
    unknown = [name for name in settings if name not in takes and name not in (*FACTS, "root", "selection")]
    if unknown:
        raise ConfigError(
            f"data.{unknown[0]} is no argument of {import_path(kind)}, "
            f"which takes {', '.join(sorted(takes)) or 'none'}."
        )
    values = {name: value for name, value in settings.items() if name in takes}
    for name, item in takes.items():
        if values.get(name) is None and item.default is item.empty and name not in of_run:
            raise ConfigError(f"{import_path(kind)} needs data.{name}, which has no default: give data.{name}=VALUE.")
    # A null of these keys means that the module's own default holds.
    values = {name: value for name, value in values.items() if value is not None or name not in (*FACTS, "root")}
    return {**{name: value for name, value in of_run.items() if name in takes}, **values}


def complete(module: LightningDataModule, settings: Mapping[str, Any]) -> ClassificationData:
    """Set the attributes of `ClassificationData` that a data module lacks, from the settings `FACTS`."""
    kind = import_path(type(module))
    facts = {name: _fact(name, getattr(module, name, None), settings.get(name), kind) for name in FACTS}
    for name, form in (("num_classes", "10"), ("image_shape", "[3,32,32]")):
        if facts[name] is None:
            raise ConfigError(f"{kind} does not say {name}: give it as an attribute, or as data.{name}={form}.")
    classes, shape = int(facts["num_classes"]), tuple(facts["image_shape"])
    if len(shape) != 3:
        raise ConfigError(f"data.image_shape is {list(shape)}: give channels, height and width, as in [3,32,32].")
    names = tuple(map(str, facts["class_names"] or range(classes)))
    if len(names) != classes:
        raise ConfigError(f"data.class_names holds {len(names)} names for {classes} classes: give one for each.")
    mean, std = facts["mean"], facts["std"]
    values = {
        "num_classes": classes,
        "image_shape": shape,
        "class_names": names,
        "normalize": None if mean is None or std is None else Normalize(mean, std),
        "batch_keys": facts["batch_keys"],
    }
    for name, value in values.items():
        if getattr(module, name, None) is None:  # an existing one may be a property
            setattr(module, name, value)
    return cast("ClassificationData", module)


def _fact(name: str, attribute: Any, setting: Any, kind: str) -> Any:
    if attribute is None or setting is None:
        return setting if attribute is None else attribute
    if _comparable(attribute) != _comparable(setting):
        raise ConfigError(f"data.{name} is {setting}, and {kind} says {attribute}: leave it out.")
    return attribute


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def describe_sizes(module: LightningDataModule) -> str:
    """Return the numbers of training, validation and test images as text, as far as they are known."""
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
    except Exception:  # a user's loaders are of any kind
        return None
