"""Hydra's nodes of what is declared in code, as plain dicts: its defaults, and the presets of methods and teachers.

A node whose name begins with an underscore holds the defaults of a group, which the files of the group name.
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore

from dkel_lightning.app.config.nodes.run import RunSettings
from dkel_lightning.app.config.nodes.training import CallbackSettings, LoggerSettings, TrainerSettings
from dkel_lightning.app.config.schema import TASK_SETTINGS
from dkel_lightning.settings.backbone import BackboneSettings
from dkel_lightning.settings.data import CachedImages, DataSettings, ResizedImages
from dkel_lightning.settings.declarations import node_of
from dkel_lightning.settings.execution import Execution
from dkel_lightning.settings.methods import PRESETS, MethodPreset, usual_arrangement
from dkel_lightning.settings.teacher import TEACHERS, TeacherSettings


class _Shared(ConfigNode):
    """A node that is not copied with the store, which Hydra copies for each group that it lists."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self  # what is loaded from it is a copy


def register() -> None:
    """Make Hydra know all that is declared; again after methods of the user's own have been registered."""
    repo = ConfigStore.instance().repo
    if all(f"{name}.yaml" in repo.get("method", {}) for name in PRESETS):
        return
    _store("_base", {**node_of(RunSettings), "method": usual_arrangement()})
    for settings in (DataSettings, BackboneSettings, TeacherSettings, Execution, LoggerSettings, CallbackSettings):
        _store("_base", node_of(settings), settings.node)
    _store("_base", {"_target_": "lightning.pytorch.Trainer", **node_of(TrainerSettings)}, "trainer")
    _store("_resized", node_of(ResizedImages), "data")
    _store("_cached", node_of(CachedImages), "data")
    for settings in TASK_SETTINGS:
        _store(f"_{settings.node}", {settings.node: node_of(settings)}, "task", "_global_")
    for name, teacher in TEACHERS.items():
        node = {"update": "none"} if teacher.settings is None else node_of(TeacherSettings, teacher.settings)
        _store(name, node, "teacher")
    for name, preset in PRESETS.items():
        _store(name, method_node(name, preset), "method", "_global_")


def _store(name: str, node: dict[str, Any], group: str | None = None, package: str | None = None) -> None:
    store = ConfigStore.instance()
    store.store(name, node, group=group, package=package, provider="dkel_lightning")
    place = store.repo if group is None else store.repo[group]
    place[f"{name}.yaml"] = _Shared(**vars(place[f"{name}.yaml"]))


def method_node(name: str, preset: MethodPreset) -> dict[str, Any]:
    """Make the node of a method: its settings, how its peers are arranged, and the teacher that it chooses."""
    made: dict[str, Any] = {"method": {"name": name, **preset.arrangement, **node_of(preset.Settings, preset.settings)}}
    teacher = preset.teacher
    if not isinstance(teacher, str):
        made["teacher"] = dict(teacher)
    elif teacher != "independent":  # which config.yaml chooses
        made["defaults"] = [{"override /teacher": teacher}]
    return made
