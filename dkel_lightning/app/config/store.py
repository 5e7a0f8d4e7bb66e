"""Hydra's nodes of what is declared in code, as plain dicts: its defaults, and the presets of methods and teachers.

A node whose name begins with an underscore holds the defaults of a group, which the files of the group name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig, OmegaConf

from dkel_lightning.app.config.nodes.run import RunSettings
from dkel_lightning.app.config.nodes.training import CallbackSettings, LoggerSettings, TrainerSettings
from dkel_lightning.app.tasks.registry import TASKS, Place, Task
from dkel_lightning.settings.backbone import BackboneSettings
from dkel_lightning.settings.data import NODES
from dkel_lightning.settings.declarations import node_of
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.methods import PRESETS, MethodPreset, usual_arrangement
from dkel_lightning.settings.teacher import TEACHERS, TeacherPreset, TeacherSettings


class _Made:
    """A configuration that is made when Hydra copies it out of its store."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self.make = make

    def __deepcopy__(self, memo: dict[int, Any]) -> DictConfig:
        return OmegaConf.create(self.make())


class _Node(ConfigNode):
    """An entry that is not copied with the store, as Hydra does for each group that it lists."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Node:
        return self


def register(own: Path | None = None) -> None:
    """Make Hydra know all that is declared; again after methods of the user's own have been registered.

    Args:
        own: folder of the user's own files, which stand for what is declared under their names.
    """
    repo = ConfigStore.instance().repo
    for group, name, package, make in _declared():
        place = repo.setdefault(group, {}) if group else repo
        place.pop(f"{name}.yaml", None)
        if own is None or not (own / group / f"{name}.yaml").is_file():
            made = cast(DictConfig, _Made(make))
            place[f"{name}.yaml"] = _Node(f"{name}.yaml", made, group or None, package, "dkel_lightning")


def _declared() -> Iterator[tuple[str, str, str | None, Callable[[], dict[str, Any]]]]:
    yield "", "_base", None, lambda: {**node_of(RunSettings), "method": usual_arrangement()}
    for of_group in (BackboneSettings, TeacherSettings, Execution, LoggerSettings, CallbackSettings):
        yield of_group.node, "_base", None, partial(node_of, of_group)
    yield "trainer", "_base", None, lambda: {"_target_": "lightning.pytorch.Trainer", **node_of(TrainerSettings)}
    for name, settings in NODES.items():
        yield "data", name, None, partial(node_of, settings)
    for task in TASKS.values():
        yield "task", task.name, "_global_", partial(_task_node, task)
    for name, teacher in TEACHERS.items():
        yield "teacher", name, None, partial(_teacher_node, teacher)
    for name, preset in PRESETS.items():
        yield "method", name, "_global_", partial(method_node, name, preset)


def _task_node(task: Task) -> dict[str, Any]:
    made: dict[str, Any] = {"task": {"name": task.name}}
    if task.settings is not None:
        made[task.settings.node] = node_of(task.settings)
    if task.place is Place.SHARED:
        made["hydra"] = {"run": {"dir": f"${{{task.name}.folder}}"}}
    return made


def _teacher_node(teacher: TeacherPreset) -> dict[str, Any]:
    return {"update": "none"} if teacher.settings is None else node_of(TeacherSettings, teacher.settings)


def method_node(name: str, preset: MethodPreset) -> dict[str, Any]:
    """Make the node of a method: its settings, its peers' arrangement, and what it chooses of teacher and backbone."""
    made: dict[str, Any] = {"method": {"name": name, **preset.arrangement, **node_of(preset.Settings, preset.settings)}}
    if preset.views_per_pass != BackboneSettings.views_per_pass:
        made["backbone"] = {"views_per_pass": preset.views_per_pass}
    teacher = preset.teacher
    if not isinstance(teacher, str):
        made["teacher"] = dict(teacher)
    elif teacher != "independent":  # which config.yaml chooses
        made["defaults"] = [{"override /teacher": teacher}]
    return made
