"""A setting is declared once: what follows from the declaration of a scratch method's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import pytest
from hydra.core.config_store import ConfigStore
from torch import Tensor

from dkel_lightning.app.config import checks, choices, reference, schema
from dkel_lightning.app.tasks import stages
from dkel_lightning.errors import ConfigError
from dkel_lightning.methods import METHODS, Method, Needs, create, register
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.settings.declarations import Settings, from_mapping, keys_of, node_of
from dkel_lightning.settings.keys import COMPUTED, MACHINE, RESUMABLE, Follows, choice, number, several, text
from dkel_lightning.settings.methods import PRESETS
from dkel_lightning.settings.teacher import TEACHERS, TeacherSettings
from dkel_lightning.settings.weights import RampUp
from tests.app.test_config import mistakes
from tests.compose import compose


@dataclass(frozen=True)
class ScratchSettings(Settings, node="method"):
    """Settings of a scratch method."""

    sharpness: Annotated[float, number("How sharp the targets are.", 0, 9, above=True), RESUMABLE] = 2.0
    rule: Annotated[str, choice("Whom a peer follows.", "all", "best")] = "all"
    rampup: RampUp = field(default_factory=RampUp)


@pytest.fixture
def scratch() -> Iterator[type[Method]]:
    @register("scratch", teacher="frozen", peers=2, views="shared")
    class Scratch(Method):
        """A method for this test alone."""

        Settings = ScratchSettings
        needs = Needs(foreign_teacher=True, ensemble="none")
        terms = ("ce",)

        def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
            raise NotImplementedError

    yield Scratch
    del METHODS["scratch"], PRESETS["scratch"]
    ConfigStore.instance().repo["method"].pop("scratch.yaml", None)


def test_a_setting_is_found_wherever_its_declaration_is_read(scratch: type[Method]) -> None:
    values = compose("experiment=cifar100", "method=scratch")
    assert values["method"]["sharpness"] == 2.0
    assert (values["method"]["peers"], values["method"]["views"], values["method"]["sharing"]) == (2, "shared", "trunk")
    assert values["method"]["rampup"]["epochs"] == 80
    assert values["teacher"]["update"] == "frozen"
    checks.check(values)
    assert compose("method=scratch")["method"]["rampup"] == {"scale": 1.0, "epochs": None, "share": 0.27,
                                                             "form": "correct"}  # fmt: skip
    wrong = "method.sharpness must be a number above 0 and up to 9, got -1."
    assert mistakes("method=scratch", method__sharpness=-1) == wrong
    with pytest.raises(ConfigError) as caught:
        create("scratch", 2, {"sharpness": -1})
    assert str(caught.value) == wrong
    assert "    sharpness: how sharp the targets are." in str(ScratchSettings.__doc__).splitlines()
    assert (schema.may_change("method.sharpness"), schema.may_change("method.rule")) == (True, False)
    key = keys_of(ScratchSettings)["method.sharpness"]
    row = "| `method.sharpness` * | `2.0` | a number above 0 and up to 9 | How sharp the targets are. |"
    assert reference.row("method.sharpness", key, key.default) == row
    assert "scratch" in choices.options("method")
    assert choices.meaning("method", "scratch") == "A method for this test alone."


def test_a_method_of_ones_own_with_a_teacher_of_its_own_has_it_trained_first(scratch: type[Method]) -> None:
    values = compose("experiment=cifar100", "method=scratch", "teacher.backbone=resnet110")
    (first,) = stages.before(values).values()
    assert (first["method"]["name"], first["method"]["peers"], first["backbone"]["name"]) == (
        "baseline",
        1,
        "resnet110",
    )
    assert first["teacher"] == {"update": "none"}
    checks.check(first)
    assert stages.before(compose("method=scratch", "teacher.weights=best.ckpt")) == {}
    assert stages.before(compose("method=dkel", "teacher=frozen")) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("teacher=none",), "teacher=none, but method=scratch needs a teacher: choose teacher=frozen."),
        (("method.peers=1",), "method=scratch needs at least 2 peers, got 1"),
        (("teacher=independent",), "the teacher of method=scratch is a network of its own"),
        (("method.views=per_peer_and_teacher",), "belongs to mean_teacher"),
    ],
)
def test_the_needs_of_a_method_of_ones_own_are_checked_like_those_of_the_shipped_ones(
    scratch: type[Method], overrides: tuple[str, ...], message: str
) -> None:
    assert message in mistakes("method=scratch", *overrides)


def test_the_kinds_of_teacher_and_ensemble_that_a_method_needs_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"Needs\.teacher is 'maybe'"):
        Needs(teacher="maybe")
    with pytest.raises(ConfigError, match=r"Needs\.ensemble is 'gate'"):
        Needs(ensemble="gate")


@dataclass(frozen=True)
class Inner(Settings, node="outer.inner"):
    """Inside."""

    exclusive = ("length", "share")

    length: Annotated[float | None, number("Its length.", 0, 99), Follows("protocol.length")] = 3.0
    share: Annotated[float | None, number("The same as a share.", 0, 1)] = None

    def contradictions(self) -> Iterator[str]:
        """Say it of an even length."""
        if self.length is not None and self.length % 2 == 0:
            yield "outer.inner.length is even."


@dataclass(frozen=True)
class Outer(Settings, node="outer", further="Argument of another library."):
    """Around it."""

    name: Annotated[str, text("What it is called.")]
    lambda_: Annotated[float, number("A weight.", 0, 99)] = 1.0
    steps: Annotated[tuple[float, ...] | None, several("Steps.", number("", 0, 99)), COMPUTED] = (1, 2)
    place: Annotated[str, text("Where."), MACHINE] = "here"
    inner: Inner = field(default_factory=Inner)
    own: Inner = field(default_factory=lambda: Inner(length=5))


def test_contradictions_of_ones_own_leave_what_exclude_each_other_refused() -> None:
    for length, share, message in (
        (3.0, 0.5, "exclude each other"),
        (None, None, "must be given"),
        (2.0, None, "even"),
    ):
        with pytest.raises(ConfigError, match=message):
            Inner(length=length, share=share)


def test_nested_settings_are_named_by_their_place_and_follow_only_where_they_begin_as_usual() -> None:
    keys = keys_of(Outer)
    assert list(keys) == [
        *("outer.name", "outer.lambda", "outer.steps", "outer.place", "outer.inner.length", "outer.inner.share"),
        *("outer.own.length", "outer.own.share", "outer.*"),
    ]
    assert (keys["outer.steps"].optional, keys["outer.name"].optional) == (True, False)
    assert (keys["outer.place"].resumable, keys["outer.steps"].resumable) == (True, False)
    assert node_of(Outer) == {
        "name": "???",
        "lambda": 1.0,
        "steps": [1, 2],
        "place": "here",
        "inner": {"length": "${protocol.length}", "share": None},
        "own": {"length": 5, "share": None},
    }
    assert node_of(Outer, {"inner": {"share": None}})["inner"] == {"length": 3.0, "share": None}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "", "lambda": -1}, ["outer.name must be text, got ''.",
                                      "outer.lambda must be a number between 0 and 99, got -1."]),
        ({"name": "x", "inner": 3}, ["outer.inner must hold its keys (length, share), got 3."]),
        ({"name": "x", "inner": {"share": 0.1}}, ["outer.inner.length and outer.inner.share exclude each other, and "
                                                  "both are given: add outer.inner.share=null, or "
                                                  "outer.inner.length=null."]),
        ({"name": "x", "inner": {"length": None}}, ["One of outer.inner.length and outer.inner.share must be given, "
                                                    "and both are null."]),
    ],
)  # fmt: skip
def test_all_mistakes_of_a_dataclass_are_named_at_once(values: Mapping[str, Any], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, values, "outer")
    assert str(caught.value).splitlines() == expected


def test_what_changes_no_figure_may_also_change_on_a_resumed_run() -> None:
    machine = [key for key in schema.KEYS if MACHINE in schema.flags(key)]
    assert machine == [
        *("resume", "trust", "figures.also", "data.root", "data.download", "data.workers", "logger.extra.*"),
        "callbacks.progress",
    ]
    assert all(schema.may_change(key) for key in machine)
    assert [key for key in schema.KEYS if COMPUTED in schema.flags(key)] == ["data.mean", "data.std"]
    assert schema.resumable_groups() == ("task", "trainer", "execution", "logger")
    assert {key for key in schema.KEYS if schema.may_change(key)} - {*machine} == {
        *(f"execution.{key}" for key in ("name", "channels_last", "threads")),
        *("task.name", "trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
        *("trainer.strategy", "trainer.log_every_n_steps", "trainer.profiler", "trainer.process_timeout"),
        "trainer.detect_anomaly",
        "teacher.weights",
    }


@pytest.mark.parametrize("name", [name for name, preset in TEACHERS.items() if preset.settings is not None])
def test_every_preset_of_the_teacher_is_a_teacher(name: str) -> None:
    settings = TEACHERS[name].settings
    assert settings is not None
    assert from_mapping(TeacherSettings, settings, "teacher") == replace(TeacherSettings(), **settings)


def test_keys_that_came_after_a_run_have_the_declared_defaults_and_not_those_of_another_experiment() -> None:
    saved = compose("experiment=cifar100", "method=pcl")
    del saved["execution"]["threads"], saved["data"]["label_noise"]["seed"]
    assert compose("method=pcl")["execution"]["threads"] == 1
    assert schema.completed(saved) == compose("experiment=cifar100", "method=pcl")
    assert "threads" not in saved["execution"]
    found = schema.completed({"method": 3, "teacher": {"update": "none"}})
    assert found.pop("teacher") == compose("method=dml")["teacher"]
    assert found == {"method": 3, "figures": {"also": []}}
