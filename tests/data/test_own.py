"""Data modules of any project: their arguments, and what is known of their images."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import LightningDataModule

from dkel_lightning.app import build
from dkel_lightning.data import ImageDataModule, own
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.data import DataSettings
from tests.compose import compose


class Parent(LightningDataModule):
    def __init__(self, folder: str = "here", **others: Any) -> None:
        super().__init__()
        self.folder = folder


class Child(Parent):
    def __init__(self, count: int, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count, self.seed = count, seed


def test_the_declared_settings_are_the_arguments_of_a_data_set() -> None:
    arguments = {name: item.default for name, item in own.parameters(ImageDataModule).items()}
    settings = {**vars(DataSettings("any")), "label_noise": None, "views": 1, "seed": 0}
    assert {**arguments, "name": "any"} == settings


def test_settings_reach_the_arguments_and_the_seed_whoever_asks_for_it() -> None:
    values = compose("data=cifar10", "seed=7")
    values["data"] |= {"_target_": f"{__name__}.Child", "count": 2, "folder": "there", "num_classes": 5}
    module: Any = build.datamodule(values)
    assert (module.count, module.folder, module.seed) == (2, "there", 7)
    values["data"]["cuont"] = 3
    values["data"]["_target_"] = "tests.fixtures.my_code.Noise"
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        build.datamodule(values)


def test_what_a_data_module_does_not_say_is_taken_from_settings() -> None:
    facts: dict[str, Any] = {"num_classes": 3, "image_shape": [1, 8, 8], "mean": [0.5], "std": [0.2]}
    complete = own.complete(Parent(), facts)
    assert (complete.class_names, complete.image_shape) == (("0", "1", "2"), (1, 8, 8))
    assert complete.normalize is not None
    with pytest.raises(ConfigError, match=r"Parent has no attribute image_shape: add it, or set data\.image_shape="):
        own.complete(Parent(), {"num_classes": 3})
    with pytest.raises(ConfigError, match=r"data\.class_names has 1 names for 3 classes"):
        own.complete(Parent(), {**facts, "class_names": ["a"]})
