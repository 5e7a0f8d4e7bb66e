"""Data modules of a user's own: what they take, and what tasks ask of them.

In the order of a run: `app/cli/user_code` imports the class that `data=NAME` (registered by `modules=`) or
`data._target_=PATH` names, registers it, and makes its arguments (`defaults`) and the `FACTS` keys of `data`.
`app/build` finds it again by that name (`known_data`) and builds it (`arguments`); once it is prepared and set up,
`complete` says what classes and sizes it has, by its own attributes or else by these keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningDataModule

from dkel_lightning.data.augment import Normalize
from dkel_lightning.data.registry import path_of
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.data import FACTS


class ClassificationData(LightningDataModule):
    """What tasks ask of data, known after `setup`.

    Attributes:
        num_classes: C.
        class_names: their names, C of them.
        image_shape: (channels, height, width).
        normalize: how uint8 images became those of the batches; None where nobody says.
        batch_keys: what images, labels and indices are called in batches that are mappings, where that is not usual.
        margin: how much larger than its central crop an evaluated image is scaled.
    """

    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    normalize: Normalize | None
    batch_keys: Mapping[str, str] | None = None
    margin: float = 1.0


def parameters(kind: type[LightningDataModule]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a data module by name, those that it hands to its parents included."""
    found: dict[str, inspect.Parameter] = {}
    for each in kind.__mro__[: kind.__mro__.index(LightningDataModule)]:
        if "__init__" not in vars(each):
            continue
        own = list(inspect.signature(vars(each)["__init__"]).parameters.values())[1:]  # without self
        kinds = {item.kind for item in own}
        for item in own:
            if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD):
                found.setdefault(item.name, item)
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def defaults(kind: type[LightningDataModule]) -> dict[str, Any]:
    """Return the arguments that a configuration can hold, with their defaults; None where there is none.

    The run's seed and the number of views are given to whoever takes them, so they are not among these.
    """
    found = {name: item for name, item in parameters(kind).items() if name not in ("seed", "views")}
    plain = {name: None if item.default is item.empty else _plain(item.default) for name, item in found.items()}
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
    """Choose from `settings` what `kind` takes, and from what the run offers what it asks for by name.

    Raises:
        ConfigError: a setting that it does not take, or an argument without a value.
    """
    takes = parameters(kind)
    unknown = [name for name in settings if name not in takes and name not in (*FACTS, "root", "selection")]
    if unknown:
        raise ConfigError(
            f"data.{unknown[0]} is no argument of {path_of(kind)}, which takes {', '.join(sorted(takes)) or 'none'}."
        )
    given = {name: value for name, value in settings.items() if name in takes}
    for name, item in takes.items():
        if given.get(name) is None and item.default is item.empty and name not in of_run:
            raise ConfigError(f"{path_of(kind)} needs data.{name}, which has no default: give data.{name}=VALUE.")
    # Ours stand for "not said" where they are null.
    said = {name: value for name, value in given.items() if value is not None or name not in (*FACTS, "root")}
    return {**{name: value for name, value in of_run.items() if name in takes}, **said}


def complete(module: LightningDataModule, settings: Mapping[str, Any]) -> ClassificationData:
    """Let a data module that is set up answer what tasks ask: by its own attributes, else by the settings.

    Raises:
        ConfigError: neither says it, or the two differ.
    """
    kind = path_of(type(module))
    known = {name: _agreed(name, getattr(module, name, None), settings.get(name), kind) for name in FACTS}
    for name, form in (("num_classes", "10"), ("image_shape", "[3,32,32]")):
        if known[name] is None:
            raise ConfigError(f"{kind} does not say {name}: give it as an attribute, or as data.{name}={form}.")
    classes, shape = int(known["num_classes"]), tuple(known["image_shape"])
    if len(shape) != 3:
        raise ConfigError(f"data.image_shape is {list(shape)}: give channels, height and width, as in [3,32,32].")
    names = tuple(map(str, known["class_names"] or range(classes)))
    if len(names) != classes:
        raise ConfigError(f"data.class_names holds {len(names)} names for {classes} classes: give one for each.")
    mean, std = known["mean"], known["std"]
    normalize = None if mean is None or std is None else Normalize(mean, std)
    said = {"num_classes": classes, "image_shape": shape, "class_names": names, "normalize": normalize}
    said["batch_keys"] = known["batch_keys"]
    for name, value in said.items():
        if getattr(module, name, None) is None:  # what it says itself may be a property
            setattr(module, name, value)
    return cast("ClassificationData", module)


def _agreed(name: str, own: Any, given: Any, kind: str) -> Any:
    if own is None or given is None:
        return given if own is None else own
    if _comparable(own) != _comparable(given):
        raise ConfigError(f"data.{name} is {given}, and {kind} says {own}: leave it out.")
    return own


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def describe_sizes(module: LightningDataModule) -> str:
    """Say how many images there are to train, validate and test on, as far as the loaders tell."""
    counts = {name: size(module, name) for name in ("train", "val", "test")}
    words = {"train": "training", "val": "validation", "test": "test"}
    return ", ".join(f"{count:,} {words[name]}" for name, count in counts.items() if count is not None)


def size(module: LightningDataModule, split: str) -> int | None:
    """Count the images of `train`, `val` or `test`; None where the data module does not tell."""
    known = getattr(module, f"{split}_size", None)
    if isinstance(known, int):
        return known
    try:
        return len(getattr(module, f"{split}_dataloader")().dataset)
    except Exception:  # loaders of a user's own are of any kind, and this is only said
        return None
