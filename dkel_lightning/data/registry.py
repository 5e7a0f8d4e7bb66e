"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch import LightningDataModule

from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.declarations import import_path

DATASETS: dict[str, type[LightningDataModule]] = {}

D = TypeVar("D", bound=type[LightningDataModule])


def register_data(name: str) -> Callable[[D], D]:
    """Register a data module (an `ImageDataModule` or any other) under `name`."""

    def add(module: D) -> D:
        other = DATASETS.get(name)
        if other is not None and import_path(other) != import_path(module):
            raise ConfigError(f"The data set name {name!r} is taken by {import_path(other)}: choose another.")
        DATASETS[name] = module
        return module

    return add
