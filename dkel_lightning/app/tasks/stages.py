"""Training in two stages: which run comes before another, and which goes on after one.

Pure functions from runs to runs; `tasks.train` trains them. A method whose frozen teacher is a network of its own
(`Needs.foreign_teacher`), and that is given no weights, has it trained first, in the folder `teacher` of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dkel_lightning.app.config import schema
from dkel_lightning.app.runs.folder import Run, values_in
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime import command_lines
from dkel_lightning.settings.declarations import from_mapping, node_of
from dkel_lightning.settings.methods import PRESETS, usual_arrangement
from dkel_lightning.settings.teacher import TeacherSettings

FOLDER = "teacher"


def teacher_run(run: Run) -> Run | None:
    """Return the run that trains the teacher, None where there is nothing to train."""
    if run.resume is not None or not trains_its_teacher(run.values):
        return None
    if from_mapping(TeacherSettings, run.values["teacher"], "teacher").sees_otherwise:
        raise ConfigError(
            "This teacher is trained first, on the images as they are, and teacher.image_size, mean, std or dtype is "
            "of one that was trained elsewhere: give teacher.weights, or teacher.pretrained=true."
        )
    return replace(run, values=teacher_values(run.values), folder=run.folder / FOLDER)


def trains_its_teacher(values: Mapping[str, Any]) -> bool:
    """Whether these settings ask for a first stage."""
    teacher = values["teacher"]
    preset = PRESETS.get(str(values["method"].get("name")))
    foreign = preset is not None and preset.needs.foreign_teacher
    given = teacher.get("weights") or teacher.get("pretrained") or values["method"].get("checkpoints")
    return foreign and teacher.get("update") == "frozen" and not given


def teacher_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Make the settings of the first stage: a baseline of one peer on the same data and protocol.

    Its seed is derived from the run's, or a teacher of the student's architecture would start as its student does.
    """
    from dkel_lightning.runtime.seeding import derive_seed  # needs torch, which the command line does without

    arrangement = {**usual_arrangement(), "peers": 1}
    method = {"name": "baseline", **arrangement, **node_of(PRESETS["baseline"].Settings)}
    backbone = values["teacher"]["backbone"] or values["backbone"]["name"]
    return {
        **values,
        "seed": derive_seed(values["seed"], "teacher stage") % 2**31,
        "method": method,
        "backbone": {**values["backbone"], "name": backbone, "split_at": None, "pretrained": False},
        "teacher": {"update": "none"},
        "deploy": {"network": "student", "peer": "auto"},
    }


def with_weights(values: Mapping[str, Any], weights: Path | None) -> dict[str, Any]:
    """Return the settings with the teacher's weights in place."""
    if weights is None and "weights" not in values["teacher"]:
        return dict(values)  # there is no teacher
    return {**values, "teacher": {**values["teacher"], "weights": None if weights is None else str(weights)}}


def trained_weights(run: Run) -> Path | None:
    """Return the checkpoint of the trained teacher that validation chose; None where none was written."""
    for name in ("best.ckpt", "last.ckpt"):
        path = run.folder / FOLDER / "checkpoints" / name
        if path.is_file():
            return path
    return None


def go_on(run: Run) -> str:
    """Return the command that goes on with a run; one without a checkpoint begins anew, with its seeds."""
    candidates = [run.checkpoints / "last.ckpt", run.folder / FOLDER / "checkpoints" / "last.ckpt"]
    place = next((path for path in candidates if path.is_file()), run.folder)
    return command_lines.typed(command_lines.override("resume", place), *run.again)


def second_stage(folder: Path) -> dict[str, Any] | None:
    """Read the configuration of the run whose first stage lies in a folder; None if it is no first stage."""
    if folder.name != FOLDER or not (folder.parent / "config.yaml").is_file():
        return None
    saved = {"teacher": {}, "method": {}, **values_in(folder.parent)}
    return saved if trains_its_teacher(saved) else None


def next_run(run: Run) -> Run | None:
    """Return the run whose first stage the resumed `run` was, None if it was no first stage."""
    saved = None if run.resume is None else second_stage(run.folder)
    if saved is None:
        return None
    outer = run.folder.parent
    last = outer / "checkpoints" / "last.ckpt"
    # What this one was resumed with holds for the stage after it as well.
    values = schema.with_changes(saved, run.values)
    return replace(run, values=values, folder=outer, resume=last if last.is_file() else None)
