"""Code of the user's own: what `modules=` and `data._target_=` name becomes a choice of its group.

Without either nothing is imported here. What a configuration read from a file names is never looked at: only what was
typed, or composed from a folder of the user's own, is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import OverrideParseException

from dkel_lightning.app.config import choices
from dkel_lightning.app.config.schema import Values
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.backbone import BackboneSettings, is_external
from dkel_lightning.settings.data import FACTS
from dkel_lightning.settings.declarations import node_of
from dkel_lightning.settings.keys import unknown_key

GROUPS = ("data", "backbone")
Node = dict[str, Any]

OF_EVERY_DATA: Node = {"root": None, "selection": "validation", **dict.fromkeys(FACTS)}
"""What tasks ask of data, for a data module of the user's own that does not have it as an argument."""


def load(arguments: Sequence[str], config_dir: Path | None) -> list[str]:
    """Import what the command line names, and make it a choice; return the arguments with `data._target_` chosen so.

    Raises:
        ConfigError: it cannot be imported.
    """
    changed = [re.sub(r"^\+{0,2}data\._target_=", "data=", argument) for argument in arguments]
    named = [name for item in _overrides(changed, "modules=") for name in _names(item)]
    paths = [name for item in _overrides(changed, "data=") for name in _names(item) if "." in name]
    for name in (name for item in _overrides(changed, "backbone=") for name in _names(item) if is_external(name)):
        group, _, last = f"backbone/{name}".rpartition("/")
        ConfigStore.instance().store(last, {**node_of(BackboneSettings), "name": name}, group=group, package="backbone")
    if not named and not paths:
        return changed
    from dkel_lightning import data
    from dkel_lightning.app import build

    build.import_modules(named)
    for path in paths:
        data.register_data(path)(build.data_at(path))
    _store_all(config_dir)
    _refuse_unused(changed)
    return changed


def _overrides(arguments: Sequence[str], beginning: str) -> Iterator[Override]:
    for argument in arguments:
        if argument.lstrip("+").startswith(beginning):
            with contextlib.suppress(OverrideParseException):  # named by the check of all arguments
                yield OverridesParser.create().parse_overrides([argument])[0]


def _names(item: Override) -> list[str]:
    given: Any = item.value()
    if isinstance(given, Glob):
        return []  # of choices that are there, which need no import
    if item.is_sweep_override():
        return [str(name) for name in item.sweep_string_iterator()] if item.is_discrete_sweep() else []
    return [str(name) for name in given] if isinstance(given, list) else [str(given)]


def _refuse_unused(arguments: Sequence[str]) -> None:
    """Refuse keys of data that the chosen data module does not have, though an experiment may have them.

    Raises:
        ConfigError: with the keys that it has.
    """
    stored = ConfigStore.instance().repo.get("data", {})
    chosen = [name for item in _overrides(arguments, "data=") for name in _names(item)]
    for node in (stored[f"{name}.yaml"].node for name in chosen if f"{name}.yaml" in stored):
        for item in _overrides(arguments, "data."):
            key = item.key_or_group
            if "defaults" not in node and key.split(".")[1] not in node:
                raise ConfigError(unknown_key(key, [f"data.{name}" for name in node if name != "_target_"]))


def chosen_from(group: str) -> set[str]:
    """Name the choices of a group that are code of the user's own."""
    there = ConfigStore.instance().repo.get(group, {}) if group in GROUPS else {}
    return set(_stored(there))


def _stored(there: Mapping[str, Any], folder: str = "") -> Iterator[str]:
    for name, node in there.items():
        if isinstance(node, Mapping):
            yield from _stored(node, f"{folder}{name}/")
        elif not name.startswith("_"):
            yield folder + name.removesuffix(".yaml")


def _store_all(config_dir: Path | None) -> None:
    from dkel_lightning import data, networks
    from dkel_lightning.app.config import store

    store.register(config_dir)  # methods and tasks say themselves what they are made of
    for name, kind in data.DATASETS.items():
        _store("data", name, _data_node(name, kind), config_dir)
    for name in networks.BACKBONES:
        _store("backbone", name, {"defaults": ["_base"], "name": name}, config_dir)


def _store(group: str, name: str, node: Node, config_dir: Path | None) -> None:
    # Under the name of a file Hydra would lay it under the file.
    places = [place / group / f"{name}.yaml" for place in (choices.folder(), config_dir) if place is not None]
    if not any(place.is_file() for place in places):
        ConfigStore.instance().store(name, node, group=group)


def _data_node(name: str, kind: Any) -> Node:
    from dkel_lightning.data import ImageDataModule, own
    from dkel_lightning.data.registry import path_of

    settings = own.defaults(kind)
    # A dot: it was named by its path, which another project may give it in several places.
    by_path = "." in name
    foreign = by_path or not issubclass(kind, ImageDataModule)
    target = {"_target_": name if by_path else path_of(kind)} if foreign else {}
    usual = own.defaults(ImageDataModule)
    if not set(usual) <= set(settings):
        return {**OF_EVERY_DATA, "name": name, **target, **settings}
    theirs = {key: value for key, value in settings.items() if key not in usual or value != usual[key]}
    return {"defaults": ["_base"], "name": name, **target, **theirs}


# ---------------------------------------------------------------------- data of the user's own in a run


def data_settings(settings: Values) -> Node:
    """Complete the settings of a data module of the user's own, which a file of theirs may give in two lines.

    What an experiment says of this library's loaders is left out of them, once the module is known.
    """
    path = settings.get("_target_")
    if path is None:
        return dict(settings)
    from dkel_lightning import data
    from dkel_lightning.data import own

    kind = data.registered_at(path)
    usual = set() if kind is None else set(own.defaults(data.ImageDataModule)) - set(own.parameters(kind))
    given = {key: value for key, value in settings.items() if key not in usual - set(OF_EVERY_DATA)}
    return {**OF_EVERY_DATA, "name": path, **given}


def with_own_data(values: Values) -> Node:
    """Import the modules and register the data module that composed settings name: the user has chosen them.

    Raises:
        ConfigError: one cannot be imported.
    """
    path, named = values["data"].get("_target_"), values["modules"]
    if path is None and not named:
        return dict(values)
    from dkel_lightning import data
    from dkel_lightning.app import build

    build.import_modules(named)  # in another process than the command's nothing of them is known yet
    if path is None:
        return dict(values)
    if data.registered_at(path) is None:
        data.register_data(path)(build.data_at(path))
    return {**values, "data": data_settings(values["data"])}
