"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch import LightningDataModule

from dkel_lightning.errors import ConfigError

DATASETS: dict[str, type[LightningDataModule]] = {}

D = TypeVar("D", bound=type[LightningDataModule])


def register_data(name: str) -> Callable[[D], D]:
    """Register a data module (an `ImageDataModule` or any other) under `name`."""

    def add(module: D) -> D:
        other = DATASETS.get(name)
        if other is not None and path_of(other) != path_of(module):
            raise ConfigError(f"The data set name {name!r} is taken by {path_of(other)}: choose another.")
        DATASETS[name] = module
        return module

    return add


def path_of(module: type[LightningDataModule]) -> str:
    """Return the import path of a class, as in `_target_`."""
    return f"{module.__module__}.{module.__qualname__}"


def registered_at(path: str) -> type[LightningDataModule] | None:
    """Return the registered data module with this import path, or registered under this path as its name."""
    by_path = {path_of(module): module for module in DATASETS.values()}
    # Only names with a dot: a file in the working folder may be called like a data set.
    by_path |= {name: module for name, module in DATASETS.items() if "." in name}
    return by_path.get(path)
