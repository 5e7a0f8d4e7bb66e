"""The check of a whole command before anything runs: every override, then each composition that they lead to."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from dkel_lightning.app.cli import composition, saved_settings
from dkel_lightning.app.cli.composition import resolved
from dkel_lightning.app.cli.folders import folder_of
from dkel_lightning.app.cli.invocation import Invocation, swept_by
from dkel_lightning.app.cli.keys import check_groups, check_keys, composed
from dkel_lightning.app.cli.overrides import MOST_JOBS, forced, is_given, parse, split, too_many, values_of
from dkel_lightning.app.compare import plan
from dkel_lightning.app.config import checks, extras, schema
from dkel_lightning.app.runs.folder import values_in
from dkel_lightning.app.tasks import registry, requirements
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime import command_lines
from dkel_lightning.settings.declarations import keys_of
from dkel_lightning.settings.methods import PRESETS


def with_hydra(invocation: Invocation) -> Invocation:
    """Compose Hydra's own settings, where something chosen could change them: a preset may make a sweep by itself.

    Raises:
        ConfigError: a choice that there is none of, or a change of folder before the job.
    """
    chosen = [item for item in invocation.for_run if invocation.chooses(item) and not item.is_sweep_override()]
    if not (chosen or invocation.for_hydra or invocation.multirun):
        return invocation
    check_groups(chosen, invocation.config_dir)
    lines = [item.input_line or "" for item in (*chosen, *invocation.for_hydra)]
    hydra_settings = composition.compose(lines, invocation.config_dir, with_hydra=True).hydra
    if hydra_settings.job.chdir:
        raise ConfigError("hydra.job.chdir=true would look for relative paths in the run's folder: leave it out.")
    return replace(invocation, hydra=hydra_settings)


def check(invocation: Invocation) -> None:
    """Check every override by itself, then each composition they lead to.

    Raises:
        ConfigError: naming the key and the choices.
    """
    for item in invocation.for_run if not invocation.multirun else ():
        if item.is_sweep_override():
            key, value = split(item.input_line or "")
            known = schema.describe(key)
            lists = known is not None and known.kind.startswith("a list")
            cure = f"write {key}=[{value}]" if lists else "add -m to run one job for each"
            raise ConfigError(f"{item.input_line} gives several values: {cure}.")
    if invocation.resumes and not invocation.shows:
        _check_resume(invocation)
        return
    given = [*map(parse, invocation.swept or ()), *invocation.for_run]
    if invocation.hydra is not None and invocation.multirun:
        _check_plugins(invocation.hydra, given)
        _check_presets(invocation)
    for items in _jobs(given):
        _check_composed(resolved(composed(items, invocation.config_dir)), items, invocation)


def _check_resume(invocation: Invocation) -> None:
    """Check what is given for a run that goes on against that run, whose choices are not those composed here."""
    task = registry.TASKS.get(invocation.values.get("task", "train"))
    if task is not None and not task.resumable:
        raise ConfigError(task.refusal("resume"))
    folder = folder_of(Path(invocation.values["resume"]))
    saved = schema.completed(values_in(folder))
    chosen = [item for item in invocation.for_run if invocation.chooses(item)]
    check_groups(chosen, invocation.config_dir)
    others = [item for item in invocation.for_run if item not in chosen]
    typed = [item.input_line or "" for item in chosen]
    given = resolved(composition.compose([*typed, *map(forced, others)], invocation.config_dir))
    check_keys(others, OmegaConf.create({**given, **saved, "logger": given["logger"]}))
    saved_settings.resumed(folder, given, [item.input_line or "" for item in invocation.for_run])


def searches(hydra_settings: DictConfig | HydraConf) -> bool:
    """Tell whether what a job of a sweep is depends on how those before it ended."""
    return "optuna" in str(hydra_settings.sweeper.get("_target_"))


def _check_plugins(hydra_settings: DictConfig, overrides: Sequence[Override]) -> None:
    """Check what launches the jobs of a sweep, and what chooses them.

    Raises:
        ConfigError: it is not installed, or takes no ranges.
    """
    plugins = {"launcher": hydra_settings.launcher, "sweeper": hydra_settings.sweeper}
    targets = {group: str(plugin.get("_target_")) for group, plugin in plugins.items()}
    for group, target in targets.items():
        for extra, packages in extras.EXTRAS.items():
            if target.startswith(f"{packages[0]}."):
                for fault in extras.missing_extra(f"hydra/{group}={extra}", extra):
                    raise ConfigError(fault)
    for item in overrides:
        if item.is_interval_sweep() and not searches(hydra_settings):
            raise ConfigError(f"{item.input_line} is a range to search in: add hydra/sweeper=optuna, or list values.")


def _check_presets(invocation: Invocation) -> None:
    """Refuse a preset that sweeps among the values of a sweep."""
    presets = [item for item in invocation.for_run if item.key_or_group == "experiment" and item.is_sweep_override()]
    for choice in (choice for item in presets for choice in values_of(item)):
        check_groups([parse(choice)], invocation.config_dir)
        if swept_by(composition.compose([choice], invocation.config_dir, with_hydra=True).hydra) is not None:
            raise ConfigError(f"{choice} is a sweep by itself: give it alone.")


def _jobs(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Give the first value of every sweep, and each further one with the others' first; the last word on a key counts.

    Raises:
        ConfigError: so many jobs are a slip of the finger.
    """
    items = {item.get_key_element(): item for item in overrides}.values()
    values = [values_of(item) for item in items]
    if math.prod(len(found) for item, found in zip(items, values, strict=True) if item.is_discrete_sweep()) > MOST_JOBS:
        raise too_many(" ".join(item.input_line or "" for item in items if item.is_sweep_override()))
    first = [found[0] for found in values]
    yield first
    for position, found in enumerate(values):
        yield from ([*first[:position], option, *first[position + 1 :]] for option in found[1:])


def _check_composed(values: dict[str, Any], items: Sequence[str], invocation: Invocation) -> None:
    """Check what one composition has come to, alone or as a job of a sweep."""
    _check_whole(values)
    checks.check(values)
    if values["resume"] and not is_given(invocation.values.get("resume")):
        raise ConfigError("resume= is typed: no file of choices says which run goes on.")
    task = registry.of(values)
    sweep = invocation.hydra if invocation.multirun else None
    if sweep is not None and task.no_sweep:
        raise ConfigError(f"task={task.name} {task.no_sweep}.")
    if task.plans:
        planned(values, items, invocation)
    if sweep is None:
        return
    if searches(sweep) and values["trainer"]["limit_val_batches"] == 0:
        raise ConfigError("A search chooses by validation, and trainer.limit_val_batches is 0.")
    # Lightning would run this command once more for each further process, or with strategy auto might.
    if not requirements.one_process(values["trainer"]):
        _check_processes(values["trainer"], sweep.launcher)


def _check_whole(values: Mapping[str, Any]) -> None:
    """Refuse a choice of the user's own that leaves out what it should build on.

    Raises:
        ConfigError: with the key that is missing, and how to begin.
    """
    method, teacher = values["method"], values["teacher"]
    if not isinstance(method, Mapping) or not isinstance(teacher, Mapping):
        return  # of another kind altogether, which the check of values names
    if "update" not in teacher:
        raise ConfigError("The chosen teacher has no `update`: begin its file with `defaults: [independent]`.")
    if "name" not in method:
        raise ConfigError("The chosen method has no `name`: begin its file with `defaults: [dkel]`, see own_method.md.")
    name = method["name"]
    declared = keys_of(PRESETS[name].Settings) if name in schema.SHIPPED else {}
    lacking = [key for key in declared if key.split(".")[1] not in (*method, "*")]
    if lacking:
        raise ConfigError(f"The chosen method has no {lacking[0]}: begin its file with `defaults: [{name}]`.")


def _check_processes(trainer: Mapping[str, Any], launcher: DictConfig) -> None:
    """Leave the processes of a sweep's jobs to SLURM, which needs a task for each device."""
    if "SlurmLauncher" not in str(launcher.get("_target_")):
        raise ConfigError(
            "A multirun with trainer=ddp would start the whole sweep again in every process: use "
            "hydra/launcher=submitit_slurm, or leave out -m and start each job with torchrun."
        )
    tasks, nodes = launcher.tasks_per_node, launcher.nodes
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else devices
    # -1 and auto are all that the job will see.
    if nodes != trainer["num_nodes"] or (isinstance(count, int) and count > 0 and count != tasks):
        raise ConfigError(
            f"trainer.devices={devices}, trainer.num_nodes={trainer['num_nodes']} need as many tasks of SLURM: "
            f"hydra.launcher.tasks_per_node is {tasks}, hydra.launcher.nodes is {nodes}."
        )


def planned(values: Mapping[str, Any], given: Sequence[str], invocation: Invocation) -> plan.Comparison:
    """Compose and check everything that a comparison trains.

    Raises:
        ConfigError: all mistakes, each with its label.
    """

    def composer(overrides: list[str]) -> plan.Settle:
        base = composed(overrides, invocation.config_dir)

        def settle(changes: Mapping[str, Any]) -> dict[str, Any]:
            changed = copy.deepcopy(base)
            for key, value in changes.items():
                OmegaConf.update(changed, key, value)
            return resolved(changed)

        return settle

    repeated = [item for item in invocation.arguments if not item.startswith(("compare.folder=", "hydra.run.dir="))]
    go_on = command_lines.typed(*repeated)
    return plan.plan(values, given, composition.options("method", invocation.config_dir), composer, go_on)
