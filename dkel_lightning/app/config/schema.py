"""Every key of the configuration, collected from where it is declared.

Imports neither torch nor Lightning nor Hydra, so that a mistake is answered at once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from dkel_lightning.app.config.nodes.run import FigureSettings, RunSettings
from dkel_lightning.app.config.nodes.training import (
    CallbackSettings,
    LoggerSettings,
    OptimizerSettings,
    PrecisionSettings,
    SchedulerSettings,
    TrainerSettings,
)
from dkel_lightning.app.tasks.registry import SHIPPED as SHIPPED_TASKS
from dkel_lightning.app.tasks.registry import TASKS, TaskSettings
from dkel_lightning.settings.backbone import BackboneSettings
from dkel_lightning.settings.data import NODES, DataSettings
from dkel_lightning.settings.declarations import Settings, keys_of, merge, node_of
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.keys import LONGER, REQUIRED, Flag, Key, is_count
from dkel_lightning.settings.methods import PRESETS, Arrangement
from dkel_lightning.settings.targets import Targets
from dkel_lightning.settings.teacher import TeacherSettings

Values = Mapping[str, Any]

SHIPPED = tuple(PRESETS)
"""The methods of this library; those of the user's own are registered later."""

TASK_SETTINGS = tuple(task.settings for task in SHIPPED_TASKS.values() if task.settings is not None)
"""What the task of the same name adds."""

DECLARED: tuple[type[Settings], ...] = (
    RunSettings,
    TaskSettings,
    *TASK_SETTINGS,
    *NODES.values(),
    BackboneSettings,
    TeacherSettings,
    Arrangement,
    *dict.fromkeys(PRESETS[name].Settings for name in ("dkel", *SHIPPED)),
    OptimizerSettings,
    SchedulerSettings,
    TrainerSettings,
    PrecisionSettings,
    Execution,
    LoggerSettings,
    CallbackSettings,
)

KEYS: dict[str, Key] = {}
"""Every key, in the order of the groups. `x.*` describes the keys of x that have no entry of their own."""
for _settings in DECLARED:
    for _name, _key in keys_of(_settings).items():
        KEYS.setdefault(_name, _key)

OPEN = tuple(name.removesuffix(".*") for name in KEYS if name.endswith(".*"))
"""Nodes whose further keys are arguments that another library checks."""

_OPEN_LEAVES = frozenset(name.removesuffix(".*") for name, key in KEYS.items() if key.is_open)


def describe(key: str, method: str | None = None) -> Key | None:
    """Find the description of a key, which a method of the user's own may give; None if there is none."""
    if method is not None and method not in SHIPPED and method in PRESETS:
        own = keys_of(PRESETS[method].Settings, "method")
        if key in own:
            return own[key]
    if key in KEYS:
        return KEYS[key]
    for task in TASKS.values():  # those of the user's own bring their keys
        if task.settings is not None and key in (own := keys_of(task.settings)):
            return own[key]
    if method is None and key.startswith("method."):
        own_methods = (name for name in PRESETS if name not in SHIPPED)
        return next((found for name in own_methods if (found := describe(key, name)) is not None), None)
    if key in _OPEN_LEAVES:
        return KEYS[f"{key}.*"]
    parts = key.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        found = KEYS.get(".".join(parts[:depth]) + ".*")
        if found is not None:
            return found
    return None


def leaves(values: Values, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk the keys of a resolved configuration down to where a description begins."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path not in KEYS and path not in _OPEN_LEAVES:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


# ---------------------------------------------------------------------- what may change


@cache
def resumable_groups() -> tuple[str, ...]:
    """List the groups that a resumed run may choose anew."""
    return tuple(settings.node for settings in DECLARED if settings.resumable)


def may_change(key: str, method: str | None = None) -> bool:
    """Tell whether a resumed run of a method may have another value of `key`, or of a group, than it began with."""
    group, _, name = key.partition(".")
    if not name or name == "_target_":
        return group in resumable_groups() or (group in KEYS and KEYS[group].resumable)
    described = describe(key, method)
    return described is not None and described.resumable


def lengthens(key: str, before: Any, after: Any) -> bool:
    """Tell whether a value only makes a run longer that had another one."""
    return LONGER in flags(key) and is_count(before) and is_count(after) and 0 < before < after


def completed(saved: Values) -> dict[str, Any]:
    """Fill in the keys that came after a configuration was saved: their defaults are what was done before."""
    came_later = (DataSettings, BackboneSettings, TrainerSettings, Execution, LoggerSettings, CallbackSettings, Deploy)
    values = {"figures": {}, **copy.deepcopy(dict(saved))}
    for settings in (*came_later, Targets, FigureSettings, Arrangement):
        group = settings.node
        if isinstance(values.get(group), Mapping) and "_target_" not in values[group]:  # a user's own has other keys
            defaults = {key: value for key, value in node_of(settings).items() if value != REQUIRED}
            values[group] = merge(defaults, values[group])
    teacher = values.get("teacher")
    if isinstance(teacher, dict):
        own = {} if teacher.get("update") == "none" else node_of(TeacherSettings)
        values["teacher"] = merge(own, teacher)
    return values


def flags(key: str) -> frozenset[Flag]:
    """Tell what is true of a key beyond the value that it holds; nothing of one that nobody declares."""
    described = describe(key)
    return frozenset() if described is None else described.flags
