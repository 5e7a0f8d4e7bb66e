"""Settings of the training stages that precede a training.

A frozen teacher of another architecture (`needs.foreign_teacher`) without weights is trained first, in the folder
`teacher`. Parts that are fitted on the frozen teacher (`needs.fitted_by`) are then fitted by that method, in the folder
of its name. Each stage is an ordinary run inside the run's folder; the next stage starts from its checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dkel_lightning.app.config import Values
from dkel_lightning.checkpoints import file_format
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.methods import get_preset
from dkel_lightning.runtime.seeding import derive_seed
from dkel_lightning.schedules import are_shares, milestones_in_epochs
from dkel_lightning.settings.teacher import EARLY, TRAININGS

TEACHER = "teacher"


def stages_before(values: Values) -> dict[str, dict[str, Any]]:
    """Return the settings of the stages before the training itself, by folder, in order."""
    return {
        name: _teacher(values) if name == TEACHER else _on_teacher_network(values, name, name, values["method"])
        for name in stage_names(values)
    }


def stage_names(values: Values) -> list[str]:
    """Return the folders of the stages."""
    needs, teacher = get_preset(values["method"]["name"]).method.needs, values["teacher"]
    if not needs.foreign_teacher or teacher.get("update") != "frozen":
        return []
    weights, fitted_by = teacher.get("weights"), needs.fitted_by
    trained = weights or teacher.get("pretrained") or values["method"].get("checkpoints")
    if fitted_by is not None and weights is None and teacher.get("pretrained"):
        raise ConfigError(f"{fitted_by} needs a teacher from a file, not a downloaded one: set teacher.weights.")
    fitted = fitted_by is None or (weights is not None and _method_of(Path(weights)) == fitted_by)
    return [*([] if trained else [TEACHER]), *([] if fitted else [str(fitted_by)])]


def with_weights(values: Values, weights: Path) -> dict[str, Any]:
    """Return settings that load this file into a separate teacher, or into the student of a method without one."""
    group = "teacher" if get_preset(values["method"]["name"]).method.needs.foreign_teacher else "backbone"
    return {**values, group: {**values[group], "weights": str(weights)}}


def _teacher(values: Values) -> dict[str, Any]:
    """Return the settings of the teacher's training: one peer, by the method of `teacher.training`."""
    teacher = values["teacher"]
    training = teacher.get("training", "plain")
    student = {"student": values["backbone"]["name"]} if training == "sftn" else {}
    stage = _on_teacher_network(values, TEACHER, TRAININGS[training], student)
    trainer, scheduler = dict(values["trainer"]), dict(values["scheduler"])
    epochs, length = trainer["max_epochs"], teacher.get("training_epochs")
    if training == "early_stopped":
        # The learning rate follows the schedule of the whole run.
        if epochs > 0 and "milestones" in scheduler:
            scheduler["milestones"] = milestones_in_epochs(scheduler["milestones"], epochs)
        if epochs > 0 and "T_max" in scheduler and scheduler["T_max"] is None:
            scheduler |= {"T_max": epochs, "interval": "epoch"}
        trainer |= {key: math.ceil(EARLY * trainer[key]) for key in ("max_epochs", "max_steps") if trainer[key] > 0}
        trainer["max_epochs"] = length or trainer["max_epochs"]
    elif length is not None:
        trainer["max_epochs"] = length
        scheduler |= {key: length for key in ("T_max",) if scheduler.get(key) == epochs}
        if "milestones" in scheduler and epochs > 0 and not are_shares(scheduler["milestones"]):
            scheduler["milestones"] = [round(milestone * length / epochs) for milestone in scheduler["milestones"]]
    data = {key: 0.0 if key == "unlabelled_share" else value for key, value in values["data"].items()}
    return {**stage, "data": data, "trainer": trainer, "scheduler": scheduler}


def _on_teacher_network(values: Values, stage: str, method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that train the teacher's network as a single peer, with those of `settings` that the method has.

    `method.labels` is not passed on. The seed is derived from the run's, since a teacher of the student's architecture
    would otherwise start with the student's weights.
    """
    chosen, teacher = get_preset(method), values["teacher"]
    known = [field.name for field in fields(chosen.method.Settings)]
    shared = {name: settings[name] for name in known if name in settings and name != "labels"}
    network = teacher.get("backbone") or values["backbone"]["name"]
    backbone = {**values["backbone"], "name": network, "split_at": None, "pretrained": False, "lr_scale": None}
    return {
        **values,
        "seed": derive_seed(values["seed"], f"{stage} stage") % 2**31,
        "method": {**asdict(chosen.arrangement), "peers": 1, **asdict(chosen.default_settings()), **shared},
        "backbone": {**backbone, "weights": teacher.get("weights")},
        "teacher": {"update": "none"},
        "deploy": {"network": "student", "peer": "auto"},
    }


def _method_of(weights: Path) -> str | None:
    """Return the method that wrote a checkpoint of this library; None for any other file."""
    try:
        return str(file_format.recipe(file_format.load(weights, mmap=True), weights)["method"]["name"])
    except (CheckpointError, KeyError, TypeError):
        return None
