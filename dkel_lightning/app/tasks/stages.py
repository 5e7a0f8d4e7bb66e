"""Training in stages: which runs come before a run.

Pure functions from settings to settings; `tasks.train` trains the stages one after the other, each from what lies in
its folder: nobody asks whether one has ended. Each is an ordinary run with settings, checkpoints and figures of its
own, in a folder inside the run's, and ends with a file of weights with which the next one begins. What is resumed is
the run around it. A method whose frozen teacher is a network of its own (`Needs.foreign_teacher`), and that is given no
weights, has it trained first as `teacher.training` says, in `teacher`; one that builds on parts fitted on the frozen
teacher (`Needs.fitted_by`) has these fitted by that method, in the folder of its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dkel_lightning.app.runs.folder import Run, progress, values_in
from dkel_lightning.checkpoints.archive import is_whole
from dkel_lightning.errors import CheckpointError, ConfigError
from dkel_lightning.runtime import command_lines
from dkel_lightning.schedules import milestones_in_epochs
from dkel_lightning.settings.declarations import node_of
from dkel_lightning.settings.methods import PRESETS, usual_arrangement
from dkel_lightning.settings.needs import Needs
from dkel_lightning.settings.teacher import EARLY, TRAININGS

TEACHER = "teacher"


def before(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give the settings of the stages that these settings ask for before their own training, by folder, in order.

    Raises:
        ConfigError: they ask for stages on the images of a teacher that was trained elsewhere.
    """
    folders, teacher = folders_before(values), values["teacher"]
    if folders and teacher.get("pretrained"):
        raise ConfigError(
            f"{folders[0]} is fitted on a teacher in a file, and teacher.pretrained fetches one: train it "
            "on these images first, and give teacher.weights."
        )
    return {
        name: _teacher(values) if name == TEACHER else _on_the_teacher(values, name, name, values["method"])
        for name in folders
    }


def folders_before(values: Mapping[str, Any]) -> list[str]:
    """Name the folders of the stages that these settings ask for."""
    needs, teacher = _needs(values), values["teacher"]
    if not needs.foreign_teacher or teacher.get("update") != "frozen":
        return []
    weights, fitted = teacher.get("weights"), needs.fitted_by
    given = weights or teacher.get("pretrained") or values["method"].get("checkpoints")
    made = fitted is None or (weights is not None and _made_by(Path(weights)) == fitted)
    return [*([] if given else [TEACHER]), *([] if made else [str(fitted)])]


def is_stage(folder: Path) -> bool:
    """Tell whether a run's folder is that of a stage of the run around it."""
    if not (folder.parent / "config.yaml").is_file():
        return False
    return folder.name in folders_before({"teacher": {}, "method": {}, **values_in(folder.parent)})


def with_weights(values: Mapping[str, Any], weights: Path | None) -> dict[str, Any]:
    """Return the settings with the file they begin with in place: of a teacher of its own, else of the student.

    None takes away what is named: a checkpoint has all weights.
    """
    groups = [group for group in ("teacher", "backbone") if "weights" in values[group]]
    if weights is not None:
        groups = ["teacher" if _needs(values).foreign_teacher else "backbone"]
    given = None if weights is None else str(weights)
    return {**values, **{group: {**values[group], "weights": given} for group in groups}}


def trained_weights(folder: Path) -> Path | None:
    """Return the checkpoint of a finished stage that validation chose; None where none was written."""
    return next((path for path in _checkpoints(folder) if path.is_file()), None)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint from which a run in a folder goes on; None where it has none that is whole."""
    return max(filter(is_whole, _checkpoints(folder)), key=progress, default=None)


def _checkpoints(folder: Path) -> list[Path]:
    return [folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]


def go_on(run: Run) -> str:
    """Return the command that goes on with a run; one without a checkpoint begins anew, with its seeds."""
    last = run.checkpoints / "last.ckpt"
    place = last if last.is_file() else run.folder
    return command_lines.typed(command_lines.override("resume", place), *run.again)


# ---------------------------------------------------------------------- the settings of a stage


def _needs(values: Mapping[str, Any]) -> Needs:
    preset = PRESETS.get(str(values["method"].get("name")))
    return preset.needs if preset is not None else Needs()


def _teacher(values: Mapping[str, Any]) -> dict[str, Any]:
    """Train a teacher: one peer on the same data and protocol, by the method that `teacher.training` means."""
    teacher = values["teacher"]
    training = teacher.get("training", "plain")
    student = {"student": values["backbone"]["name"]} if training == "sftn" else {}
    alone = _on_the_teacher(values, TEACHER, TRAININGS[training], student)
    trainer, scheduler = dict(values["trainer"]), dict(values["scheduler"])
    whole, length = trainer["max_epochs"], teacher.get("training_epochs")
    if training == "early_stopped":
        # The rate falls as in the whole run, which is left early.
        if whole > 0 and "milestones" in scheduler:
            scheduler["milestones"] = milestones_in_epochs(scheduler["milestones"], whole)
        trainer |= {key: math.ceil(EARLY * trainer[key]) for key in ("max_epochs", "max_steps") if trainer[key] > 0}
        trainer["max_epochs"] = length or trainer["max_epochs"]
    elif length is not None:
        trainer["max_epochs"] = length
        scheduler |= {key: length for key in ("T_max",) if scheduler.get(key) == whole}
    return {**alone, "trainer": trainer, "scheduler": scheduler}


def _on_the_teacher(values: Mapping[str, Any], folder: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Make the settings of a training of the teacher's network as a single peer, by the method `name`.

    Of `settings` it takes those that this method has. Its seed is derived from the run's, or a teacher of the student's
    architecture would start as its student does.
    """
    from dkel_lightning.runtime.seeding import derive_seed  # needs torch, which the command line does without

    preset = PRESETS[name]
    arrangement = {**usual_arrangement(), **preset.arrangement, "peers": 1}
    shared = {item.name: settings[item.name] for item in fields(preset.Settings) if item.name in settings}
    teacher = values["teacher"]
    network = teacher.get("backbone") or values["backbone"]["name"]
    backbone = {**values["backbone"], "name": network, "split_at": None, "pretrained": False}
    return {
        **values,
        "seed": derive_seed(values["seed"], f"{folder} stage") % 2**31,
        "method": {"name": name, **arrangement, **node_of(preset.Settings, shared)},
        "backbone": {**backbone, "weights": teacher.get("weights")},
        "teacher": {"update": "none"},
        "deploy": {"network": "student", "peer": "auto"},
    }


def _made_by(weights: Path) -> str | None:
    """Name the method of the checkpoint of this library; None of any other file."""
    from dkel_lightning.checkpoints import file_format

    try:
        return str(file_format.recipe(file_format.load(weights), weights)["method"]["name"])
    except (CheckpointError, KeyError, TypeError):
        return None  # whoever loads it says what is wrong with it
