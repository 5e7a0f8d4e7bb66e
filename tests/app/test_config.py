"""The configuration: every key described, every contradiction named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dkel_lightning import methods
from dkel_lightning.app.config import checks, choices, schema
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.declarations import from_mapping
from dkel_lightning.settings.methods import PRESETS, usual_arrangement
from dkel_lightning.settings.teacher import TeacherSettings
from tests.compose import compose

GROUPS = ["backbone", "data", "experiment", "method", "optimizer", "precision", "scheduler", "teacher", "trainer"]
GROUPS += ["recipe", "callbacks", "debug", "execution", "logger"]


def options(group: str) -> list[str]:
    return [name for name in choices.options(group) if "/" not in name]


def every_choice() -> Iterator[str]:
    for group in GROUPS:
        yield from (f"{group}={name}" for name in options(group))


@pytest.mark.parametrize("choice", list(every_choice()))
def test_every_choice_composes_and_each_of_its_keys_is_described_and_valid(choice: str) -> None:
    extra = ["method=baseline"] if choice == "teacher=none" else []
    extra = ["trainer=gpu"] if choice == "precision=fp16" else extra
    values = compose(choice, *extra)
    undescribed = [key for key, _ in schema.leaves(values) if schema.describe(key) is None and "_target_" not in key]
    assert undescribed == []
    group, _, option = choice.partition("=")
    assert choices.meaning(group, option).partition(" ")[0] != "dkel"  # a sentence, and no command
    checks.check(values)


def test_no_choice_is_named_by_digits_alone_or_null() -> None:
    names = [path.stem for path in choices.folder().rglob("*.yaml")]
    assert [name for name in names if name.isdigit() or name in ("null", "true", "false")] == []


@pytest.mark.parametrize("name", options("method"))
def test_a_method_begins_the_same_in_python_and_on_the_command_line(name: str) -> None:
    values = compose("experiment=cifar100", f"method={name}")
    method = dict(values["method"])
    preset, kind = methods.preset(name), methods.METHODS[name]
    assert kind.Settings is preset.Settings
    assert kind.needs is PRESETS[kind.__module__.rpartition(".")[2]].needs
    arrangement = {key: method.pop(key) for key in usual_arrangement()}
    found = {key: preset.arranged(key) for key in ("peers", "sharing", "views", "classifiers")}
    assert arrangement == found
    assert method.pop("name") == name
    assert method == asdict(methods.create(name, preset.arranged("peers")).settings)
    if preset.teacher == "none":
        assert values["teacher"] == {"update": "none"}
        return
    expected = from_mapping(TeacherSettings, preset.teacher_settings, "teacher")
    assert from_mapping(TeacherSettings, values["teacher"], "teacher") == expected


@pytest.mark.parametrize(
    ("experiment", "epochs", "milestones", "rampup"),
    [("cifar10", 300, [150, 225], 80), ("cifar100", 300, [150, 225], 80), ("tinyimagenet", 100, [30, 60], 27)],
)
def test_the_protocol_of_the_large_experiments(
    experiment: str, epochs: int, milestones: list[int], rampup: int
) -> None:
    values = compose(f"experiment={experiment}")
    assert values["trainer"]["max_epochs"] == epochs
    assert values["scheduler"]["milestones"] == milestones
    assert values["scheduler"]["gamma"] == 0.1
    assert values["method"]["rampup"] == {"scale": 1.0, "epochs": rampup, "share": None, "form": "correct"}
    assert values["optimizer"]["lr"] == 0.1
    assert values["optimizer"]["momentum"] == 0.9
    assert values["optimizer"]["nesterov"] is True
    assert values["optimizer"]["weight_decay"] == 5e-4
    assert values["data"]["batch_size"] == 128
    assert values["teacher"]["decay"] == 0.999
    assert values["method"]["peers"] == 3


def test_the_released_preset_keeps_its_own_ramp_up_on_tinyimagenet() -> None:
    values = compose("experiment=tinyimagenet", "method=dkel_released")
    assert values["method"]["rampup"] == {"scale": 0.1, "epochs": 80, "share": None, "form": "released"}


def test_the_released_preset_takes_a_pass_a_view_of_any_backbone_unless_told_otherwise() -> None:
    released = compose("experiment=tinyimagenet", "method=dkel_released")
    assert (released["backbone"]["name"], released["backbone"]["views_per_pass"]) == ("tiny_resnet18", "one")
    told = compose("method=dkel_released", "backbone=vgg16", "backbone.views_per_pass=all")
    assert (told["backbone"]["name"], told["backbone"]["views_per_pass"]) == ("vgg16", "all")
    assert compose("experiment=tinyimagenet")["backbone"]["views_per_pass"] == "all"


def mistakes(*overrides: str, **changes: Any) -> str:
    values = compose(*overrides)
    for key, value in changes.items():
        node = values
        *path, last = key.split("__")
        for part in path:
            node = node[part]
        node[last] = value
    with pytest.raises(ConfigError) as caught:
        checks.check(values)
    return str(caught.value)


def test_all_mistakes_of_values_come_in_one_message() -> None:
    message = mistakes(seed="abc", method__temperature=0, teacher__start="keeep", data__validation=1.5)
    assert message.splitlines() == [
        "seed must be a whole number between 0 and 9223372036854775807, got 'abc'.",
        "method.temperature must be a number between 0.01 and 100, got 0.",
        "data.validation must be a number above 0 and up to 0.9, got 1.5.",
        "teacher.start must be one of keep, mean_teacher, copy, got 'keeep'. Did you mean keep?",
    ]


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        ((), {"method__peers": 1}, "method=dkel needs at least 2 peers, got 1: raise method.peers"),
        ((), {"method__rampup__epochs": 10}, "method.rampup.epochs and method.rampup.share exclude each other"),
        (("teacher=none",), {}, "teacher=none, but method=dkel needs a teacher"),
        (("teacher=none", "method=baseline", "deploy.network=teacher"), {}, "deploy.network=teacher, but teacher=none"),
        (("deploy.peer=3",), {}, "deploy.peer=3, but 3 peers are numbered 0 to 2"),
        (("precision=fp16", "trainer=cpu"), {}, "precision=fp16 needs a GPU"),
        (("trainer.max_epochs=-1",), {}, "The run has no end"),
        (("trainer.max_epochs=0",), {}, "trainer.max_epochs is 0"),
        (("data.mean=[0.5]",), {}, "data.mean and data.std belong together"),
        (("method=baseline", "method.peers=1", "deploy.network=ensemble"), {}, "needs at least 2 peers"),
    ],
)
def test_contradictions_are_named_with_their_cure(
    overrides: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    assert message in mistakes(*overrides, **changes)


def test_schedules_of_the_ema_rate_are_checked_value_by_value() -> None:
    values = compose("experiment=cifar100")
    values["teacher"]["decay"] = {0: 0.99, 80: 0.999}
    checks.check(values)
    values["teacher"]["decay"] = {0: 0.99, 80: 1.5}
    with pytest.raises(ConfigError, match=r"teacher\.decay must be a number between 0 and 1, or a schedule"):
        checks.check(values)


def test_a_ramp_up_longer_than_the_run_and_selection_on_the_test_set_are_warned_of() -> None:
    values = compose("experiment=cifar100", "trainer.max_epochs=30", "data.selection=paper")
    first, second = checks.warnings(values)
    assert first.startswith("The ramp-up takes 80 epochs and the run only 30")
    assert "chosen on the test set" in second
    assert checks.warnings(compose()) == []


def test_the_folder_of_the_configuration_is_found_from_the_package(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert (choices.folder() / "config.yaml").is_file()
