"""The check of the values by itself: whatever a key holds, it is allowed or named; the check never fails.

Thousands of values in seconds, since nothing is composed or trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dkel_lightning import config
from dkel_lightning.errors import ConfigError
from tests.compose import compose
from tests.fuzz.space import INTERNALS, POOL, values_of

BASES = (
    (),
    ("method=mean_teacher", "scheduler=cosine", "optimizer=adamw"),
    ("method=kd", "data=image_folder", "teacher=gradient"),
    ("method=cl_ilr", "data=npz"),
    ("experiment=cifar100", "method=dkel_released"),
    ("task=compare",),
    ("task=convergence",),
)


@cache
def base(number: int) -> dict[str, Any]:
    return compose(*BASES[number])


def changed(number: int, changes: dict[str, Any]) -> dict[str, Any]:
    values = copy.deepcopy(base(number))
    for key, value in changes.items():
        *path, last = key.split(".")
        node = values
        for part in path:
            node = node[part]
        node[last] = copy.deepcopy(value)
    return values


def fault(number: int, changes: dict[str, Any]) -> str:
    """Return what the check says, which names a key that was changed and does not speak of Python; "" if nothing."""
    try:
        config.check(changed(number, changes))
    except ConfigError as error:
        message = str(error)
        assert not INTERNALS.search(message), message
        assert any(word in message for key in changes for word in named(key)), (changes, message)
        return message
    return ""


def named(key: str) -> tuple[str, ...]:
    """Return what a message may call a key: a name by group=name, others by their group too, as in a contradiction."""
    group, _, last = key.rpartition(".")
    return (key, f"{group}=") if last == "name" else (key, last, f"{group}.")


def keys(number: int) -> list[str]:
    return [key for key, _ in config.leaves(base(number)) if not key.endswith("_target_")]


def every_value_of_every_key() -> Iterator[tuple[str, Any]]:
    for key in keys(0):
        description = config.describe(key)
        assert description is not None
        yield from ((key, value) for value in [*POOL, *(each for values in values_of(key) for each in values)])


def test_every_value_of_every_key_is_allowed_or_named() -> None:
    refused = [bool(fault(0, {key: value})) for key, value in every_value_of_every_key()]
    assert len(refused) > 5000
    assert 0.3 < sum(refused) / len(refused) < 0.95


def test_what_a_description_does_not_allow_is_refused() -> None:
    for key in keys(0):
        description = config.describe(key)
        assert description is not None
        for value in POOL:
            if description.fault(value) is not None:
                assert f"{key} must be" in fault(0, {key: value}) or value == {}, (key, value)


@settings(
    max_examples=1000,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_values_that_contradict_each_other_are_named(data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(BASES) - 1))
    chosen = data.draw(st.lists(st.sampled_from(keys(number)), min_size=2, max_size=5, unique=True))
    fault(number, {key: data.draw(st.sampled_from(values_of(key)[0] or POOL)) for key in chosen})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, [], "", {}, -1, 10**30, 1e400])
def test_peers_without_sense_are_refused_at_once(value: Any) -> None:
    assert "method.peers must be a whole number between 1 and 64" in fault(0, {"method.peers": value})
