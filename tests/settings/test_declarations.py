"""Settings check themselves, and a method registered by its user is known like those of the library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from torch import Tensor

from dkel_lightning.errors import ConfigError
from dkel_lightning.methods import METHODS, Method, Needs, create, get_preset, register
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.runtime.mappings import leaves, merge
from dkel_lightning.settings.declarations import (
    Follows,
    Setting,
    Settings,
    choice,
    either,
    from_mapping,
    node_of,
    number,
    schedule,
    several,
    switch,
    text,
    whole,
)
from dkel_lightning.settings.rampup import RampUp
from dkel_lightning.settings.targets import Targets


@dataclass(frozen=True)
class Inner(Settings, node="outer.inner", one_of=("length", "share")):
    length: Annotated[float | None, number("Its length.", 0, 99), Follows("protocol.length")] = 3.0
    share: Annotated[float | None, number("The same as a share.", 0, 1)] = None


@dataclass(frozen=True)
class Outer(Settings, node="outer"):
    name: Annotated[str, text("What it is called.")]
    lambda_: Annotated[float, number("A weight.", 0, 99)] = 1.0
    steps: Annotated[tuple[float, ...] | None, several("Steps.", number("", 0, 99))] = (1, 2)
    inner: Inner = field(default_factory=Inner)
    own: Inner = field(default_factory=lambda: Inner(length=5))


def test_an_interpolation_is_written_where_a_value_is_the_default_and_its_dataclass_begins_as_usual() -> None:
    assert node_of(Outer("x")) == {
        "name": "x",
        "lambda": 1.0,
        "steps": [1, 2],
        "inner": {"length": "${protocol.length}", "share": None},
        "own": {"length": 5, "share": None},
    }
    assert node_of(Outer("x", inner=Inner(None, 0.5)))["inner"] == {"length": None, "share": 0.5}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "", "lambda": -1}, ["outer.name must be text, got ''.",
                                      "outer.lambda must be a number between 0 and 99, got -1."]),
        ({"name": "x", "inner": 3}, ["outer.inner must be a mapping of its keys, got 3."]),
        ({"name": "x", "inner": {"length": 100}}, ["outer.inner.length must be a number between 0 and 99, got 100."]),
        ({"name": "x", "inner": {"length": 1, "share": 0}}, ["Set one of outer.inner.length and outer.inner.share, and "
                                                             "the other to null."]),
        ({"name": "x", "inner": {"length": None}}, ["Set one of outer.inner.length and outer.inner.share, and the "
                                                    "other to null."]),
        ({"name": "x", "stesp": 1}, ["Unknown key outer.stesp. Did you mean outer.steps? Keys of outer: inner, lambda, "
                                     "name, own, steps."]),
    ],
)  # fmt: skip
def test_every_wrong_value_of_a_mapping_is_named_at_once(values: Mapping[str, Any], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, values, "outer")
    assert str(caught.value).splitlines() == expected


def test_a_mapping_is_laid_over_the_default_of_its_field_and_one_of_two_lengths_replaces_the_other() -> None:
    values = from_mapping(Outer, {"name": "x", "inner": {"share": 0.1}, "own": {}}, "outer")
    assert (values.inner, values.own) == (Inner(None, 0.1), Inner(5))


@pytest.mark.parametrize(
    ("setting", "good", "bad"),
    [
        (number("", 0, 1), [0, 1, 0.5], [-0.1, True, float("nan"), "1", [1]]),
        (number("", 0, 1, above=True), [1], [0]),
        (whole("", 1, 3), [1, 3], [0, 4, 2.0, True]),
        (switch(""), [True], [1, "true"]),
        (text(""), ["a"], ["", 1]),
        (choice("", "all", "best"), ["all"], ["bset", None, ["all"]]),
        (either(whole("", 1, 3), choice("", "auto")), [2, "auto"], [0, "atuo"]),
        (several("", whole("", 1, 3), least=2), [[1, 2], (3, 3)], [[1], [0, 1], 1, "ab"]),
        (schedule("", 0, 1), [0.5, {0: 0.1, 0.3: 1}], [2, {}, {0.1: 1}, {0: 2}, {"0": 1}]),
    ],
)
def test_a_kind_of_setting_accepts_its_values_and_no_others(setting: Setting, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if setting.error("key", value) is not None] == []
    assert [value for value in bad if setting.error("key", value) is None] == []


def test_a_misspelt_word_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"method.rampup.form must be one of .* got 'corect'. Did you mean correct\?"):
        RampUp(form="corect")


def test_mappings_are_merged_to_the_bottom() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "d": {"e": 4}}) == {
        "a": {"b": 9, "c": 2},
        "d": {"e": 4},
    }


def test_a_schedule_is_one_value_and_a_list_a_tuple() -> None:
    assert merge({"decay": {0: 0.9, 5: 0.99}}, {"decay": {0: 0.5}}) == {"decay": {0: 0.5}}
    assert leaves({"teacher": {"decay": {0: 0.9, 5: 0.99}}}) == {"teacher.decay": {0: 0.9, 5: 0.99}}
    assert leaves({"a": {0: {"_target_": "b"}, "_target_": "c"}}) == {"a.0._target_": "b", "a._target_": "c"}
    assert from_mapping(Targets, {"class_weights": [1, 2]}, "targets").class_weights == (1, 2)


@dataclass(frozen=True)
class ScratchSettings(Settings, node="method"):
    sharpness: Annotated[float, number("How sharp the targets are.", 0, 9, above=True)] = 2.0
    rampup: RampUp = field(default_factory=RampUp)


@pytest.fixture
def scratch() -> Iterator[type[Method]]:
    @register("scratch", teacher="frozen", peers=2, views="shared")
    class Scratch(Method):
        """A method for this test alone."""

        Settings = ScratchSettings
        needs = Needs(foreign_teacher=True)
        terms = ("ce",)

        def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
            raise NotImplementedError

    yield Scratch
    del METHODS["scratch"]


def test_a_method_of_ones_own_is_registered_like_those_of_the_library(scratch: type[Method]) -> None:
    assert get_preset("scratch").meaning == "A method for this test alone."
    assert get_preset("scratch").node() == {
        "defaults": [{"override /teacher": "frozen"}],
        "method": {
            "name": "scratch",
            "peers": 2,
            "sharing": "trunk",
            "views": "shared",
            "classifiers": "own",
            "sharpness": 2.0,
            "rampup": {
                "scale": "${protocol.rampup.scale}",
                "epochs": "${protocol.rampup.epochs}",
                "share": "${protocol.rampup.share}",
                "form": "correct",
            },
        },
    }
    with pytest.raises(ConfigError) as caught:
        create("scratch", 2, {"sharpness": -1})
    assert str(caught.value) == "method.sharpness must be a number above 0 and up to 9, got -1."
    with pytest.raises(ConfigError, match=r"views=per_peer_and_teacher is for mean_teacher"):
        scratch.needs.check("scratch", 2, True, "per_peer_and_teacher")
    with pytest.raises(ConfigError, match=r"The method name 'scratch' is taken by"):
        register("scratch")(METHODS["dkel"].method)
    with pytest.raises(ConfigError, match=r"Unknown choice method=scrath. Did you mean scratch\?"):
        get_preset("scrath")
