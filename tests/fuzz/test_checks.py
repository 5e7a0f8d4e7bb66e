"""The check of the values by itself: whatever a key holds, it is allowed or named; the check never fails.

Thousands of values in seconds, since nothing is composed or trained.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dkel_lightning.app.config import checks, schema
from dkel_lightning.errors import ConfigError
from tests.compose import compose
from tests.fuzz.runs import reproducible
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
    values = dict(base(number))
    for key, value in changes.items():
        *path, last = key.split(".")
        node = values
        for part in path:  # what is not changed is shared
            node[part] = dict(node[part])
            node = node[part]
        node[last] = copy.deepcopy(value)
    return values


def fault(number: int, changes: dict[str, Any]) -> str:
    """Return what the check says, which names a key that was changed and does not speak of Python; "" if nothing."""
    try:
        checks.check(changed(number, changes))
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
    # A task comes with keys of its own; task.name= is refused before the check, with task= as the cure.
    return [key for key, _ in schema.leaves(base(number)) if not key.endswith("_target_") and key != "task.name"]


@pytest.mark.slow
def test_every_value_of_every_key_is_allowed_or_named() -> None:
    counts = {"allowed": 0, "named": 0}
    for key in keys(0):
        description = schema.describe(key)
        fitting, others = values_of(key)
        for value in [*fitting, *others]:
            said = fault(0, {key: value})
            counts["named" if said else "allowed"] += 1
            # A mapping without entries is none of the leaves that are checked; Hydra lays it over what is there.
            if description.fault(value) is not None and value != {}:
                assert f"{key} must be" in said, (key, value)
    assert counts["allowed"] > 500, counts
    assert counts["named"] > 2000, counts


@pytest.mark.slow
@reproducible(500)
@given(st.data())
def test_values_that_contradict_each_other_are_named(data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(BASES) - 1))
    chosen = data.draw(st.lists(st.sampled_from(keys(number)), min_size=2, max_size=5, unique=True))
    fault(number, {key: data.draw(st.sampled_from(values_of(key)[0] or POOL)) for key in chosen})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, [], "", {}, -1, 10**30, 1e400])
def test_peers_without_sense_are_refused_at_once(value: Any) -> None:
    assert "method.peers must be a whole number between 1 and 64" in fault(0, {"method.peers": value})
