"""Hydra's nodes of what is declared in code, as plain dicts: its defaults, and the presets of methods and teachers.

A node whose name begins with an underscore holds the defaults of a group, which the files of the group name.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore

from dkel_lightning.app.config.nodes.run import RunSettings
from dkel_lightning.app.config.nodes.training import CallbackSettings, LoggerSettings, TrainerSettings
from dkel_lightning.app.config.schema import TASK_SETTINGS
from dkel_lightning.settings.backbone import BackboneSettings
from dkel_lightning.settings.data import CachedImages, DataSettings, ResizedImages
from dkel_lightning.settings.declarations import node_of
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.methods import PRESETS, MethodPreset, usual_arrangement
from dkel_lightning.settings.teacher import TEACHERS, TeacherSettings


def register() -> None:
    """Make Hydra know all that is declared; again after methods of the user's own have been registered."""
    store = ConfigStore.instance().store
    store("_base", {**node_of(RunSettings), "method": usual_arrangement()})
    for settings in (DataSettings, BackboneSettings, TeacherSettings, Execution, LoggerSettings, CallbackSettings):
        store("_base", node_of(settings), group=settings.node)
    store("_base", {"_target_": "lightning.pytorch.Trainer", **node_of(TrainerSettings)}, group="trainer")
    store("_resized", node_of(ResizedImages), group="data")
    store("_cached", node_of(CachedImages), group="data")
    for settings in TASK_SETTINGS:
        store(f"_{settings.node}", {settings.node: node_of(settings)}, group="task", package="_global_")
    for name, teacher in TEACHERS.items():
        node = {"update": "none"} if teacher.settings is None else node_of(TeacherSettings, teacher.settings)
        store(name, node, group="teacher")
    for name, preset in PRESETS.items():
        store(name, method_node(name, preset), group="method", package="_global_")


def method_node(name: str, preset: MethodPreset) -> dict[str, Any]:
    """Make the node of a method: its settings, how its peers are arranged, and the teacher that it chooses."""
    made: dict[str, Any] = {"method": {"name": name, **preset.arrangement, **node_of(preset.Settings, preset.settings)}}
    teacher = preset.teacher
    if not isinstance(teacher, str):
        made["teacher"] = dict(teacher)
    elif teacher != "independent":  # which config.yaml chooses
        made["defaults"] = [{"override /teacher": teacher}]
    return made
