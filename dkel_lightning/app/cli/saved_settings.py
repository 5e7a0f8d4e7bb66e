"""What a saved configuration decides: of a run that is gone on with, and of a checkpoint that is read.

The file may be a stranger's. It describes its run, by numbers, listed words and names that are looked up among those
that are known. All other text says where to read or write, whom to call or what to import: that is said by the command
line or by a configuration of the user's own, and by the file only with `trust=true`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dkel_lightning.app.cli.overrides import parse
from dkel_lightning.app.config import checks, schema
from dkel_lightning.app.config.schema import Values
from dkel_lightning.app.runs.folder import values_in
from dkel_lightning.app.runs.settings import as_written, differences
from dkel_lightning.app.tasks import registry, stages
from dkel_lightning.errors import CheckpointError, ConfigError, DkelError
from dkel_lightning.runtime import command_lines, locks
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.ranks import is_first
from dkel_lightning.schedules import are_shares
from dkel_lightning.settings.backbone import reads_a_folder
from dkel_lightning.settings.declarations import at
from dkel_lightning.settings.keys import MACHINE, shortened
from dkel_lightning.settings.methods import PRESETS

OF_EVERY_RUN = ("method.name", "method.peers", "backbone.name", "teacher.update", "data.name", "data.root")
OF_CHECKPOINT = ("data", "backbone", "method", "teacher", "deploy")
DECIDED_BY = {
    "trainer": ("accelerator", "devices", "num_nodes", "strategy"),
    "execution": ("name",),
}
"""What a choice of these groups decides on a resume; the rest of them belongs to the run."""
PROCESSES = ("trainer.devices", "trainer.num_nodes")
ENDS = ("T_max", "total_steps")
"""Where a scheduler of torch's ends, after which its rate rises again or fails."""
CLASSES = {
    "trainer._target_": r"lightning\.pytorch\.Trainer",
    "optimizer._target_": r"(torch|timm)\.optim\.[A-Z]\w*",
    "scheduler._target_": r"torch\.optim\.lr_scheduler\.[A-Z]\w*|dkel_lightning\.modules\.optim\.WarmupCosine",
}
"""What a file may name as a class. Whole names: with a prefix one could walk through a module's imports to anything."""


# ---------------------------------------------------------------------- what a file may say


def foreign(saved: Values, given: Values) -> dict[str, Any]:
    """Find what a file says beyond a description of its run, and this command does not say as well."""
    own = dict(schema.leaves(given))
    return {
        key: value
        for key, value in schema.leaves(saved)
        if _holds_text(value) and not _describes(key, value, saved) and own.get(key) != value
    }


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping | list):
        return any(map(_holds_text, value.values() if isinstance(value, Mapping) else value))
    return not (value is None or isinstance(value, int | float))


def _describes(key: str, value: Any, saved: Values) -> bool:
    """Tell whether a key takes listed words and known names alone, or has its default."""
    if key in CLASSES:
        return re.fullmatch(CLASSES[key], str(value)) is not None
    if key.startswith("data.") and "_target_" in saved.get("data", {}):
        return False  # an argument of code that is not ours
    described = schema.describe(key, _method(saved))
    if described is None:
        return False
    return value == described.default or not (described.is_free or reads_a_folder(value))


def _refuse_foreign(values: Values, folder: Path, given: Values) -> None:
    found = foreign(values, given)
    if found and not given["trust"]:
        raise CheckpointError(
            f"{folder / 'config.yaml'} names {_listed(found)}: folders, hosts, loggers and code are not taken from a "
            "file. If the run is your own, give them again, or add trust=true; from a stranger, do neither."
        )


def _listed(found: Values) -> str:
    def said(key: str, value: Any) -> str:
        if isinstance(value, Mapping):
            targets = [str(each.get("_target_")) for each in value.values() if isinstance(each, Mapping)]
            return f"{key} ({', '.join(targets or map(str, value))})"
        return command_lines.override(key, f"[{','.join(map(str, value))}]" if isinstance(value, list) else value)

    code_first = sorted(found.items(), key=lambda item: not item[0].endswith("_target_"))
    return shortened(", ".join(said(key, value) for key, value in code_first))


# ---------------------------------------------------------------------- runs that are gone on with


def resumed(folder: Path, given: Values, overrides: Sequence[str]) -> dict[str, Any]:
    """Lay what was given over the settings of the run in a folder.

    Args:
        folder: of the run.
        given: what this command composes.
        overrides: of what was given; a value that the run has already may be repeated.

    Raises:
        DkelError: it is no training, would be another run, or names what only its user may.
    """
    saved = values_in(folder)
    kept = registry.TASKS.get(saved.get("task", {}).get("name", "train"))
    if kept is None or not kept.resumable:
        raise ConfigError(
            f"{folder} is no training run, so there is nothing to resume. A comparison goes on by compare.folder=PATH."
        )
    _refuse_lacking(saved, OF_EVERY_RUN)
    values = schema.completed(saved)
    # Of a composition the keys that do not depend on what is chosen.
    chosen = ("method.", "optimizer.", "scheduler.", "teacher.", "data.", "trust", "task.")
    _refuse_lacking(values, [key for key, _ in schema.leaves(given) if not key.startswith(chosen)])
    given = as_written(given)
    for key in sorted(explicit(overrides)):
        group = key.split(".")[0]
        if key in DECIDED_BY:
            for name in DECIDED_BY[key]:
                values[key][name] = given[key][name]
        elif group == "logger":  # chosen as a whole: those of before are not laid under them
            values["logger"] = given["logger"]
        elif key != "task" and (schema.may_change(key, _method(saved)) or _lengthens(key, values, given)):
            *path, name = key.split(".")
            place = values
            for part in path:
                place = place[part]
            place[name] = at(given, key)
        elif key != "task":
            _refuse_other(key, values, given, overrides)
    for key in PROCESSES:
        if at(values, key) != at(saved, key):
            used = ", ".join(f"{each}={at(saved, each)}" for each in PROCESSES)
            raise ConfigError(
                f"The run used {used}: another number of processes changes the batches, so resume with the same."
            )
    values |= {"resume": None, "trust": given["trust"]}
    _refuse_foreign(values, folder, given)  # what this command gives instead is not taken from the file
    check_values(values, folder)
    return values


def _lengthens(key: str, begun: Values, given: Values) -> bool:
    """Tell whether a key makes a run longer whose schedules allow it.

    Raises:
        ConfigError: with the schedules that do not.
    """
    before, after = at(begun, key), at(given, key)
    if not schema.lengthens(key, before, after):
        return False
    if moved := [*_moved(begun, key, after)]:
        raise ConfigError(
            f"{key}={after}: the run began with {before}, and a longer one would move {', '.join(moved)}. "
            "Start a new run of that length; one that is begun so can be made longer."
        )
    return True


def _moved(values: Values, key: str, length: int) -> Iterator[str]:
    """Name the schedules that another length moves, and what is to be given in their place."""
    for name, value in schema.leaves({group: values[group] for group in ("method", "teacher")}):
        described = schema.describe(name, _method(values))
        if described is not None and described.instead is not None and value is not None:
            yield f"{name}={value} (give {described.instead})"
        elif isinstance(value, Mapping) and are_shares(value):
            yield f"{name} (let it count in epochs)"
    scheduler = values["scheduler"]
    milestones = scheduler.get("milestones") or ()
    if are_shares(milestones):
        yield f"scheduler.milestones={milestones} (give them in epochs)"
    for name in ENDS:
        in_epochs = scheduler.get("interval") == "epoch" and key == "trainer.max_epochs"
        if scheduler.get(name) is not None and not (in_epochs and scheduler[name] >= length):
            yield f"scheduler.{name}={scheduler[name]} (give the length to come, or another scheduler)"


def _refuse_other(key: str, begun: Values, given: Values, overrides: Sequence[str]) -> None:
    """Refuse a value, or a choice of a group, that the run was not begun with.

    Raises:
        ConfigError: with what it was begun with, and what may change.
    """
    if "." in key or key in schema.KEYS:
        if (before := at(begun, key)) == at(given, key):
            return
        why = f" (it began with {shortened(str(before))})"
    elif key in begun:
        if _chosen(begun[key]) == _chosen(given[key]):
            return
        why = ""
    else:  # it sets keys of any group, each of which may have been given another value beside it
        beside = explicit(overrides)
        found = {each.split(":")[0]: each for each in differences(begun, given)}
        said = [found[name] for name in found if name not in beside and not schema.may_change(name, _method(begun))]
        if not said:
            return
        why = f" ({shortened('; '.join(said))})"
    groups = [group for group in schema.resumable_groups() if group != "task"]
    may = [each for each in schema.KEYS if "." in each and schema.may_change(each)]
    others = [each for each in may if each.split(".")[0] not in (*groups, "task")]
    raise ConfigError(
        f"{key} would change a run that is being resumed{why}: leave it out, or start a new run. "
        f"What may change: {', '.join([*groups, *others])} "
        f"(of trainer: {', '.join(each.split('.')[1] for each in may if each.startswith('trainer.'))})."
    )


def _chosen(node: Any) -> Any:
    """Tell by what a choice is known: its name, its class, or all that it says."""
    return next((node[key] for key in ("name", "_target_") if key in node), node) if isinstance(node, Mapping) else node


def announce(folder: Path, given: Values, values: Values) -> None:
    """Say what was trusted and what has changed, and keep a new length: a later resume goes on to that."""
    if not is_first():
        return
    saved = values_in(folder)
    if found := foreign(saved, given):
        print(f"Taken from {folder / 'config.yaml'} by trust=true: {_listed(found)}", flush=True)
    before, now = dict(schema.leaves(schema.completed(saved))), dict(schema.leaves(values))
    changed = [key for key in now if key in before and before[key] != now[key] and MACHINE not in schema.flags(key)]
    if changed:
        said = "; ".join(f"{key}={now[key]}, and it was {before[key]}" for key in changed)
        print(f"The run goes on with {said}.", flush=True)
    longer = [key for key in changed if schema.lengthens(key, before[key], now[key])]
    if longer:
        trainer = {**saved["trainer"], **{key.split(".")[1]: now[key] for key in longer}}
        text = OmegaConf.to_yaml(OmegaConf.create({**saved, "trainer": trainer}))
        with locks.held(folder, locks.CLAIM, locks.PATIENCE):  # not that of a run that another process trains
            write_text(folder / "config.yaml", text)


# ---------------------------------------------------------------------- checkpoints that are read


def of_checkpoint(saved: Values, given: Values, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Take from a checkpoint's run what names networks, method and data; nothing of it is run by name.

    Keys that are given explicitly win.

    Args:
        saved: the configuration of that run.
        given: what this command composes.
        overrides: of what was given.
        folder: of the run.

    Raises:
        DkelError: it lacks something, or names what only its user may.
    """
    given_keys = explicit(overrides)
    refuse_decided(given_keys, "checkpoint")
    if "_target_" in saved.get("data", {}) and _chosen(saved["data"]) == _chosen(given["data"]):
        given_keys -= {"data"}
    taken = [group for group in OF_CHECKPOINT if group not in given_keys]
    _refuse_lacking(saved, [key for key in OF_EVERY_RUN if key.split(".")[0] in taken])
    values: dict[str, Any] = dict(given)
    # The checkpoint has the weights of its teacher, wherever they were once read, or this command says it again.
    completed = stages.with_weights(schema.completed(saved), None)
    teacher = completed["teacher"]
    teacher.update({key: value for key, value in (("weights", None), ("pretrained", False)) if key in teacher})
    for group in taken:
        node = {**(completed.get(group) or (given[group] if group == "deploy" else {}))}
        node |= {key: value for key, value in given[group].items() if f"{group}.{key}" in given_keys}
        values[group] = node
    if registry.of(given).reads_data:
        _refuse_foreign(values, folder, given)
    if saved.get("modules") and values["method"]["name"] not in PRESETS:
        modules = ",".join(map(str, saved["modules"]))
        raise ConfigError(f"The run was made with modules of the user's own: name them again, modules=[{modules}].")
    return {**values, "name": saved.get("name", given["name"])}


def refuse_decided(given: set[str], by: str) -> None:
    """Refuse to choose what the trained network is already."""
    # Of a teacher that a checkpoint leaves out.
    may = ("teacher.weights", "teacher.pretrained") if by == "checkpoint" else ()
    groups = ("backbone", "method", "teacher", "experiment")
    fixed = [key for key in sorted(given) if key.split(".")[0] in groups and key not in may]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: the {by} decides this; leave it out.")


# ---------------------------------------------------------------------- both


def explicit(overrides: Sequence[str]) -> set[str]:
    """Name the keys and groups that are given."""
    return {item.key_or_group for item in map(parse, overrides) if not item.is_hydra_override()}


def check_values(values: Values, source: Path | None) -> None:
    """Check the values of a run; what was read from a run's folder may lack anything that a composition has."""
    try:
        checks.check(values)
    except DkelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if source is None:
            raise
        raise CheckpointError(
            f"{source / 'config.yaml'} is of another version, or damaged ({type(error).__name__}: {error})."
        ) from error


def _refuse_lacking(values: Values, keys: Sequence[str]) -> None:
    there = {key for key, _ in schema.leaves(values)}
    missing = [key for key in keys if key not in there]
    if missing:
        raise ConfigError(
            f"The saved config.yaml lacks {', '.join(missing[:5])}: it is of another version, or damaged."
        )


def _method(values: Values) -> str | None:
    name = values.get("method", {}).get("name")
    return name if isinstance(name, str) else None
