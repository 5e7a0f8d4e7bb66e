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
