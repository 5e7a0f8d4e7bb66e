"""The folder of a run: its path, settings, checkpoints and lock."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from dkel_lightning.app.records import CONFIG, SUMMARY
from dkel_lightning.errors import CheckpointError, ConfigError, FolderInUseError
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.ranks import is_first


@dataclass(frozen=True)
class Run:
    """The input of a task.

    Attributes:
        values: the resolved configuration.
        folder: where the first process writes everything.
        resume: the checkpoint to resume from; None for a new run.
    """

    values: Mapping[str, Any]
    folder: Path
    resume: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of last.ckpt and best.ckpt."""
        return self.folder / "checkpoints"

    def write_config(self) -> None:
        """Write config.yaml, unless the run is resumed."""
        if is_first() and self.resume is None:
            write_text(self.folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(self.values))))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder."""
        if is_first():
            write_text(self.folder / name, json.dumps(content, indent=2) + "\n")


# ---------------------------------------------------------------------- where a run is written


@functools.cache  # called several times per command, and the result must not change
def run_dir(task_folder: str | None, name: str, resume: str | None, checkpoint: str | None, now: str) -> str:
    """Return the folder of a run: Hydra's `hydra.run.dir`.

    Args:
        task_folder: name of the task's folder in the run of its checkpoint; None for a new folder.
        name: of the experiment.
        resume: checkpoint or folder of the run to resume, or `last`.
        checkpoint: the checkpoint that the task reads.
        now: the time.
    """
    if resume:
        return str(run_of(resume_path(resume)))
    if task_folder and checkpoint:
        path = Path(checkpoint)
        return str(run_of(path) / f"{task_folder}_{path.stem}")
    return f"outputs/{name}/{now}"


def run_of(path: Path) -> Path:
    """Return the run's folder for a checkpoint or for the folder itself."""
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock the folder of a run for this process and its children."""
    if not is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise FolderInUseError(f"{folder} is in use by another process.") from error


# ---------------------------------------------------------------------- what lies in it


def load_config(folder: Path) -> dict[str, Any]:
    """Read config.yaml of a run."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.yaml: pass the folder of a run, or a checkpoint in it.")
    values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return dict(values)


def resume_path(resume: str, outputs: str = "outputs") -> Path:
    """Return the checkpoint or folder that `resume=` means; `last` is the newest training under outputs/."""
    if resume != "last":
        path = Path(resume).expanduser()
        if not path.exists():
            raise ConfigError(f"resume={resume}: no such file or folder.")
        return path
    runs = [path.parent for path in Path(outputs).rglob(CONFIG) if not (path.parent.parent / CONFIG).is_file()]
    newest_first = sorted(
        runs, key=lambda run: max(path.stat().st_mtime for path in (run / CONFIG, *run.rglob("*.ckpt"))), reverse=True
    )
    for run in newest_first:
        if load_config(run)["task"]["name"] == "train":
            return run
    raise ConfigError(f"resume=last: there is no run in {Path(outputs).resolve()}.")


def find_checkpoint(path: Path) -> Path | None:
    """Return the checkpoint to resume from: the given file, else the intact one with the most steps; None without any.

    An error about a damaged checkpoint names an intact one.
    """
    from dkel_lightning.checkpoints.file_format import is_whole, load

    folder = run_of(path)
    candidates = [file for name in ("last", "best") if (file := folder / "checkpoints" / f"{name}.ckpt").is_file()]
    whole = [file for file in candidates if is_whole(file)]
    newest = max(whole, key=lambda file: load(file, mmap=True)["global_step"], default=None)  # last.ckpt in a tie
    if path.is_file():
        if is_whole(path):
            return path
        hint = f"resume={newest}" if newest else "start the run again"
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {hint}.")
    damaged = [str(file) for file in candidates if file not in whole]
    if damaged and newest is None:
        raise CheckpointError(f"{', '.join(damaged)} is damaged: start the run again.")
    if damaged and is_first():
        print(f"{', '.join(damaged)} is damaged: resuming from {newest}.", flush=True)
    return newest


def best_checkpoint(folder: Path) -> Path:
    """Return best.ckpt, else last.ckpt."""
    paths = [folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    return next((path for path in paths if path.is_file()), paths[0])


def is_finished(folder: Path) -> bool:
    """Return whether a run has written its summary, which comes last."""
    return (folder / SUMMARY).is_file()
