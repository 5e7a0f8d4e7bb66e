"""Data sets by name: each has its keys in a file, and what a data module takes is read from its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule

from dkel_lightning.app.config import conf_dir
from dkel_lightning.data import DATASETS, DigitsDataModule, ImageDataModule, own, register_data
from dkel_lightning.errors import ConfigError
from tests.compose import compose


def test_every_data_set_is_chosen_by_its_file_with_the_arguments_of_its_class() -> None:
    files = {path.stem for path in (conf_dir() / "data").glob("*.yaml") if path.stem != "_base"}
    assert files == set(DATASETS)
    for name, kind in DATASETS.items():
        composed = compose(f"data={name}", "experiment=cifar10", f"data={name}")["data"]
        assert composed.keys() - {"name"} == own.defaults(kind).keys(), name
    base = {key: value for key, value in compose("experiment=cifar10", "data=cifar10")["data"].items() if key != "name"}
    usual = own.defaults(ImageDataModule)
    assert {**base, "label_noise": None} == usual


def test_a_name_belongs_to_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "mine", DigitsDataModule)
    assert register_data("mine")(DigitsDataModule) is DigitsDataModule
    with pytest.raises(ConfigError, match=r"'mine' is taken by dkel_lightning\.data\.readers\.digits\.Digits"):
        register_data("mine")(ImageDataModule)


class Parent(LightningDataModule):
    def __init__(self, folder: Path = Path("here"), sizes: tuple[int, ...] = (1, 2), transform: Any = print) -> None:
        super().__init__()
        self.folder, self.sizes, self.transform = folder, sizes, transform


class Child(Parent):
    def __init__(self, count: int, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count, self.seed = count, seed


class Closed(Parent):
    def __init__(self, count: int = 1) -> None:
        super().__init__()


def test_the_arguments_of_a_data_module_are_those_that_it_takes_and_hands_on() -> None:
    # What a configuration cannot hold, such as a transform, keeps its default.
    assert own.defaults(Child) == {"count": None, "folder": "here", "sizes": [1, 2]}
    assert own.defaults(Closed) == {"count": 1}


def test_settings_reach_the_arguments_and_what_the_run_offers_whoever_asks_for_it() -> None:
    of_run = {"seed": 7, "views": 3}
    given = {"count": 2, "folder": "there", "root": None, "num_classes": 5, "selection": "validation"}
    assert own.arguments(Child, given, of_run) == {"seed": 7, "count": 2, "folder": "there"}
    with pytest.raises(
        ConfigError, match=r"data.batch_size is no argument of .*Child, which takes count, folder, seed"
    ):
        own.arguments(Child, {"count": 1, "batch_size": 4}, of_run)
    with pytest.raises(ConfigError, match=r"needs data.count, which has no default"):
        own.arguments(Child, {"count": None}, of_run)
