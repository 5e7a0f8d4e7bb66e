"""The folder of a run: where it lies, its settings, its checkpoints and its lock."""

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
    """What a task works on.

    Attributes:
        values: the resolved configuration.
        folder: where everything is written, by the first process alone.
        resume: the checkpoint to go on from; None for a new run.
    """

    values: Mapping[str, Any]
    folder: Path
    resume: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of last.ckpt and best.ckpt."""
        return self.folder / "checkpoints"

    def write_config(self) -> None:
        """Write config.yaml; a resumed run keeps the one that it began with."""
        if is_first() and self.resume is None:
            write_text(self.folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(self.values))))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder."""
        if is_first():
            write_text(self.folder / name, json.dumps(content, indent=2) + "\n")


# ---------------------------------------------------------------------- where a run is written


@functools.cache  # one command asks several times, and a folder's name must not change in between
def run_dir(task_folder: str | None, name: str, resume: str | None, checkpoint: str | None, now: str) -> str:
    """Return the folder of a run: Hydra's `hydra.run.dir`.

    Args:
        task_folder: name of the folder that the task writes beside its checkpoint; None: a folder of its own.
        name: of the experiment.
        resume: checkpoint or folder of the run that goes on, or `last`.
        checkpoint: what the task reads.
        now: the time.
    """
    if resume:
        return str(run_of(resume_path(resume)))
    if task_folder and checkpoint:
        path = Path(checkpoint)
        return str(run_of(path) / f"{task_folder}_{path.stem}")
    return f"outputs/{name}/{now}"


def run_of(path: Path) -> Path:
    """Return the folder of the run that a checkpoint lies in; of a folder itself."""
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the folder of a run for this process and those that it starts."""
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
        raise CheckpointError(f"{folder} has no config.yaml: give the folder of a run, or a checkpoint in it.")
    values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return dict(values)


def resume_path(resume: str, outputs: str = "outputs") -> Path:
    """Return the checkpoint or folder that `resume=` means; `last` is the newest run under outputs/."""
    if resume != "last":
        path = Path(resume).expanduser()
        if not path.exists():
            raise ConfigError(f"resume={resume}: there is no such file or folder.")
        return path
    runs = [path.parent for path in Path(outputs).rglob(CONFIG) if not (path.parent.parent / CONFIG).is_file()]
    if not runs:
        raise ConfigError(f"resume=last: no run lies under {Path(outputs).resolve()}.")
    return max(runs, key=lambda run: max(path.stat().st_mtime for path in (run / CONFIG, *run.rglob("*.ckpt"))))


def find_checkpoint(path: Path) -> Path | None:
    """Return the checkpoint with which a run goes on: the given one, else the whole one of most steps; None if none.

    A torn checkpoint is named, with the one that is whole.
    """
    from dkel_lightning.checkpoints.archive import is_whole
    from dkel_lightning.checkpoints.file_format import load

    folder = run_of(path)
    candidates = [file for name in ("last", "best") if (file := folder / "checkpoints" / f"{name}.ckpt").is_file()]
    whole = [file for file in candidates if is_whole(file)]
    newest = max(
        whole, key=lambda file: load(file, mmap=True)["global_step"], default=None
    )  # of equally many steps the first, last.ckpt
    if path.is_file():
        if is_whole(path):
            return path
        hint = f"resume={newest}" if newest else "start the run again"
        raise CheckpointError(f"{path} is torn, or no checkpoint: {hint}.")
    torn = [str(file) for file in candidates if file not in whole]
    if torn and newest is None:
        raise CheckpointError(f"{', '.join(torn)}: torn. Start the run again.")
    if torn and is_first():
        print(f"{', '.join(torn)} is torn: resuming from {newest}.", flush=True)
    return newest


def best_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that validation chose, else the last one."""
    paths = [folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    return next((path for path in paths if path.is_file()), paths[0])


def is_finished(folder: Path) -> bool:
    """Tell whether a run was tested, which comes last."""
    return (folder / SUMMARY).is_file()
