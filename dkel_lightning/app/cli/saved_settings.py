"""What a saved configuration decides: of a run that is gone on with, and of a checkpoint that is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dkel_lightning.app.cli import user_code
from dkel_lightning.app.cli.overrides import parse
from dkel_lightning.app.config import schema
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.methods import PRESETS

OF_EVERY_RUN = ("method.name", "method.peers", "backbone.name", "teacher.update", "data.name", "data.root")
OF_CHOICES = ("method.", "data.", "teacher.", "backbone.", "optimizer.", "scheduler.")
"""Begins the keys that exist only with some choices."""
OF_CHECKPOINT = ("data", "backbone", "method", "teacher", "deploy")


def laid_over(saved: dict[str, Any], given: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay what may change over the configuration of a resumed run.

    Raises:
        ConfigError: a key that changes the trajectory.
    """
    _refuse_lacking(saved, OF_EVERY_RUN)
    values = user_code.completed(saved)
    _refuse_lacking(values, _of_every_composition(given))
    processes = (values["trainer"]["devices"], values["trainer"]["num_nodes"])
    for item in map(parse, overrides):
        key = item.key_or_group
        if user_code.is_named_again(key, values, given):
            continue
        if not schema.may_change(key):
            _refuse(key)
        group = key.split(".")[0]
        if group == "trainer":
            changed = given["trainer"].items()
            values["trainer"] |= {name: value for name, value in changed if schema.may_change(f"trainer.{name}")}
        elif key == "execution":  # the rest of it belongs to the experiment
            values["execution"] |= {name: given["execution"][name] for name in ("name", "compile")}
        elif group == "logger":
            values["logger"] = given["logger"]
        elif "." in key:
            *path, name = key.split(".")
            place, source = values, given
            for part in path:
                place, source = place[part], source[part]
            place[name] = source[name]
    if processes != (values["trainer"]["devices"], values["trainer"]["num_nodes"]):
        raise ConfigError(
            f"The run used trainer.devices={processes[0]}, trainer.num_nodes={processes[1]}: another number of "
            "processes changes the batches, so resume with the same."
        )
    return values


def _of_every_composition(given: Mapping[str, Any]) -> list[str]:
    """List the keys of a composition that do not depend on what is chosen."""
    chosen = ("method.", "optimizer.", "scheduler.", "teacher.", "data.", "trust", "task.")
    return [key for key, _ in schema.leaves(given) if not key.startswith(chosen)]


def _refuse_lacking(values: Mapping[str, Any], keys: Sequence[str]) -> None:
    there = {key for key, _ in schema.leaves(values)}
    missing = [key for key in keys if key not in there]
    if missing:
        raise ConfigError(
            f"The saved config.yaml lacks {', '.join(missing[:5])}: it is of another version, or damaged."
        )


def refuse_fixed(key: str) -> None:
    """Refuse a setting of what a run was made of, where it may not change.

    Raises:
        ConfigError: with what may.
    """
    if key.startswith(OF_CHOICES) and not schema.may_change(key):
        _refuse(key)


def _refuse(key: str) -> None:
    groups = [group for group in schema.resumable_groups() if group != "task"]
    may = [each for each in schema.KEYS if "." in each and schema.may_change(each)]
    others = [each for each in may if each.split(".")[0] not in (*groups, "task")]
    raise ConfigError(
        f"{key} would change a run that is being resumed: leave it out, or start a new run. "
        f"What may change: {', '.join([*groups, *others])} "
        f"(of trainer: {', '.join(each.split('.')[1] for each in may if each.startswith('trainer.'))})."
    )


def of_checkpoint(saved: dict[str, Any], given: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Take from a checkpoint's run what names networks, method and data; nothing of it is run by name.

    Keys that are given explicitly win.
    """
    given_keys = explicit(overrides)
    refuse_decided(given_keys, "checkpoint")
    if user_code.is_named_again("data", saved, given):
        given_keys -= {"data"}
    taken = [group for group in OF_CHECKPOINT if group not in given_keys]
    _refuse_lacking(saved, [key for key in OF_EVERY_RUN if key.split(".")[0] in taken])
    values, completed = dict(given), user_code.completed(saved)
    for group in taken:
        node = dict(completed.get(group, given[group] if group == "deploy" else {}))
        node |= {key: value for key, value in given[group].items() if f"{group}.{key}" in given_keys}
        values[group] = node
    user_code.refuse_data_of_strangers(values, given)
    if saved.get("modules") and values["method"]["name"] not in PRESETS:
        modules = ",".join(map(str, saved["modules"]))
        raise ConfigError(f"The run was made with modules of the user's own: name them again, modules=[{modules}].")
    return {**values, "name": saved.get("name", given["name"])}


def explicit(overrides: Sequence[str]) -> set[str]:
    """Name the keys and groups that are given."""
    return {item.key_or_group for item in map(parse, overrides)}


def refuse_decided(given: set[str], by: str) -> None:
    """Refuse to choose what the trained network is already."""
    fixed = [key for key in sorted(given) if key.split(".")[0] in ("backbone", "method", "teacher", "experiment")]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: the {by} decides this; leave it out.")
