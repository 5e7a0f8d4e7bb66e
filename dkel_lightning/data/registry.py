"""Data sets by name: one that is registered can be chosen by it, and nothing else has to know it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch import LightningDataModule

from dkel_lightning.errors import ConfigError

DATASETS: dict[str, type[LightningDataModule]] = {}

D = TypeVar("D", bound=type[LightningDataModule])


def register_data(name: str) -> Callable[[D], D]:
    """Make a data module known under `name`: an `ImageDataModule`, or any other.

    Raises:
        ConfigError: the name is taken by another class.
    """

    def add(module: D) -> D:
        taken = DATASETS.get(name)
        if taken is not None and path_of(taken) != path_of(module):
            raise ConfigError(f"The data set name {name!r} is taken by {path_of(taken)}: choose another.")
        DATASETS[name] = module
        return module

    return add


def path_of(module: type[LightningDataModule]) -> str:
    """Return where a class is imported from, as `_target_` names it."""
    return f"{module.__module__}.{module.__qualname__}"


def registered_at(path: str) -> type[LightningDataModule] | None:
    """Find the data module that is registered under a path of import as its name, or lies at it."""
    by_path = {path_of(module): module for module in DATASETS.values()}
    # A name without a dot is none, though a file in the working folder may be called like a data set.
    by_path |= {name: module for name, module in DATASETS.items() if "." in name}
    return by_path.get(path)
