"""Where a command writes: settled before Hydra starts, so that it can be told as any other setting."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dkel_lightning.app.cli.invocation import Invocation
from dkel_lightning.app.cli.overrides import is_given, split
from dkel_lightning.app.runs.folder import has_ended, is_training, newest_checkpoint, run_folder
from dkel_lightning.app.tasks import registry, stages
from dkel_lightning.app.tasks.registry import Task
from dkel_lightning.errors import FULL, CheckpointError, ConfigError, DiskFullError, DkelError
from dkel_lightning.runtime import command_lines


def with_folder(invocation: Invocation) -> Invocation:
    """Add the folder where a resumed run or a task on a checkpoint writes, and make that of all runs.

    Raises:
        DkelError: it cannot be written, or what is to be resumed is not there or would go on elsewhere.
    """
    values, multirun = invocation.values, invocation.multirun
    resumed = folder_of(Path(values["resume"])) if invocation.resumes else None
    if resumed is not None and Path(values.get("hydra.run.dir", resumed)).resolve() != resumed.resolve():
        # Elsewhere it would lack its best epoch, its rows and its settings.
        raise ConfigError(
            f"A run goes on in its own folder: leave out hydra.run.dir, or copy {resumed} and resume the copy."
        )
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"  # of the two only this one is in force
    task = registry.TASKS.get(values.get("task", "train"))
    added = [] if multirun or key in values else _folder(values, task, resumed)
    given = {**values, **dict(map(split, added))}
    folder = given.get("compare.folder", given.get(key, "outputs"))
    _check_writable(folder, key)
    if task is not None and task.named_after_itself and "name" not in values:
        # The experiment's name says nothing of it.
        added = [*added, f"name={task.name}"]
    return invocation.with_arguments([*invocation.arguments, *added])


def with_checkpoint(invocation: Invocation) -> Invocation:
    """Name the checkpoint that `resume=` means, in the place of `last` or of a run's folder.

    Once: it reads whole checkpoints, and another run may write a newer one.

    Raises:
        CheckpointError: there is none.
        ConfigError: several jobs would go on with it.
    """
    if not is_given(invocation.values.get("resume")):
        return invocation
    if invocation.multirun:
        raise ConfigError("resume= goes on with one run, without -m; a sweep goes on with hydra.sweep.dir=FOLDER.")
    named = command_lines.override("resume", find_resume(invocation.values["resume"]).resolve())
    return invocation.with_arguments([named if split(a)[0] == "resume" else a for a in invocation.arguments])


def _check_writable(path: str, key: str) -> None:
    """Make the folder of all runs, so that Hydra does not fail with a traceback where it cannot."""
    before, interpolation, _ = path.partition("${")  # which Hydra fills in later
    folder = Path(f"{before}x").parent if interpolation else Path(path)
    cure = f"run in another folder, or choose one with {key}=PATH"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except RecursionError:
        raise ConfigError(f"{key}: {len(folder.parts)} folders lie in one another; choose a shorter path.") from None
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError.of(error) from error
        raise DkelError(f"Cannot write to {folder.absolute()} ({error.strerror}): {cure}.") from error
    if not os.access(folder, os.W_OK):
        raise DkelError(f"Cannot write to {folder.absolute()} (not writable): {cure}.")


def _folder(values: Mapping[str, str], task: Task | None, resumed: Path | None) -> list[str]:
    checkpoint = values.get("checkpoint", "null")
    if resumed is not None:
        return [command_lines.override("hydra.run.dir", resumed)]
    if task is not None and task.reads_checkpoint and is_given(checkpoint):
        beside = folder_beside(Path(checkpoint), task)
        return [] if beside is None else [command_lines.override("hydra.run.dir", beside)]
    return []


def folder_beside(checkpoint: Path, task: Task) -> Path | None:
    """Give the folder in a checkpoint's run into which a task writes what it makes of it; None without a run."""
    run = run_folder(checkpoint)
    return None if run is None else run / f"{task.folder}_{checkpoint.resolve().stem}"


def find_resume(text: str) -> Path:
    """Find the checkpoint that `resume=` names; of a run that has none yet, its folder. Of a stage its run is meant."""
    found = _named(text)
    folder = folder_of(found)
    return (stages.last_checkpoint(folder.parent) or folder.parent) if stages.is_stage(folder) else found


def _named(text: str) -> Path:
    path = newest_checkpoint(Path("outputs")) if text == "last" else Path(text)
    if (path / "config.yaml").is_file():
        if not is_training(path):  # which whoever resumes it says, and not of a member of a comparison
            return path
        if has_ended(path) and not any((path / "checkpoints").glob("*.ckpt")):  # those of its stages train it anew
            raise CheckpointError(f"{path} has ended, and its checkpoints are gone: start a new run.")
        found = any(path.rglob("last.ckpt")) or any(path.rglob("best.ckpt"))
        return newest_checkpoint(path) if found else path
    if not path.is_file():
        raise CheckpointError(
            f"No checkpoint at {path}: give the path of a .ckpt file, the folder of a run, or resume=last."
        )
    if run_folder(path) is None:
        raise CheckpointError(
            f"{path} cannot be resumed: its run's config.yaml should lie at {path.resolve().parent.parent}."
        )
    return path


def folder_of(resumed: Path) -> Path:
    """Give the folder of the run that `find_resume` has found."""
    return resumed.resolve() if resumed.is_dir() else resumed.resolve().parent.parent
