"""The files of a run: its folder, its configuration, the checkpoints in it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import OmegaConf

from dkel_lightning.app.config import schema
from dkel_lightning.app.runs.parsing import parse_settings
from dkel_lightning.app.tasks import registry
from dkel_lightning.checkpoints.archive import is_whole, step_of
from dkel_lightning.errors import CheckpointError
from dkel_lightning.runtime.atomic_files import text_of, write_text
from dkel_lightning.runtime.ranks import is_first
from dkel_lightning.runtime.texts import printable

ENDED = "summary.json"
"""Written when a run has been tested, which comes last."""


@dataclass(frozen=True)
class Run:
    """A run: its resolved settings and its folder, into which only the first process writes.

    Attributes:
        values: the resolved configuration.
        folder: where everything is written.
        resume: the checkpoint to go on from, None for a new run.
        part: whether a larger task runs it, which says itself how it ended and how to go on.
        again: what a command that goes on with it has to say besides its folder.
    """

    values: Mapping[str, Any]
    folder: Path
    resume: Path | None = None
    part: bool = False
    again: tuple[str, ...] = ()

    PROVENANCE: ClassVar[str] = "provenance.json"

    @property
    def settings(self) -> str:
        """The text of its config.yaml."""
        return OmegaConf.to_yaml(OmegaConf.create(dict(self.values)))

    @property
    def checkpoints(self) -> Path:
        """The folder of last.ckpt and best.ckpt."""
        return self.folder / "checkpoints"

    def describe(self) -> None:
        """Write config.yaml and provenance.json; a resumed run keeps the configuration that it began with."""
        if self.resume is None and is_first():
            write_text(self.folder / "config.yaml", self.settings)
        from dkel_lightning.runtime import provenance  # needs torch, which the command line does without

        self.write_json(self._provenance, provenance.collect())

    def note_execution(self, execution: Mapping[str, Any]) -> None:
        """Write into provenance.json how the steps are executed, as far as it is known."""
        if is_first():
            known = json.loads(text_of(self.folder / self._provenance))
            self.write_json(self._provenance, {**known, "execution": execution})

    @property
    def _provenance(self) -> str:
        return self.PROVENANCE if self.resume is None else "provenance_resumed.json"

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder."""
        if is_first():
            write_text(self.folder / name, json.dumps(content, indent=2) + "\n")


def run_folder(checkpoint: Path) -> Path | None:
    """Return the folder of the run that wrote `<run>/checkpoints/<name>.ckpt`, None if there is no such run."""
    folder = checkpoint.resolve().parent.parent
    return folder if (folder / "config.yaml").is_file() else None


def saved_values(checkpoint: Path) -> dict[str, Any]:
    """Read the configuration of the run that wrote a checkpoint.

    Raises:
        CheckpointError: the checkpoint or its run's config.yaml is missing or unreadable.
    """
    if not checkpoint.is_file():
        raise CheckpointError(f"No checkpoint at {checkpoint}: give the path of a .ckpt file.")
    return values_in(checkpoint.resolve().parent.parent)


def values_in(folder: Path) -> dict[str, Any]:
    """Read the configuration in the folder of a run, as it stands there.

    The folder may be a stranger's. What no run writes is refused: interpolations, which would read this process's
    environment, and aliases, of which a few lines can stand for gigabytes.

    Raises:
        CheckpointError: config.yaml is missing, unreadable, or not what a run writes.
    """
    path = folder / "config.yaml"
    cure = "put back the file that the run wrote."
    try:
        values = parse_settings(text_of(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {cure}") from error
    for key, text in _texts(values):
        if "${" in text:
            raise CheckpointError(f"{path} was not read: {key} holds {text!r}, and no run writes a ${{...}}; {cure}")
    for group in dict.fromkeys(key.partition(".")[0] for key in schema.KEYS if "." in key):
        if not isinstance(values.get(group, {}), dict):
            raise CheckpointError(f"{path} holds {values[group]!r} for {group}, which has keys of its own: {cure}")
    return values


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Walk the texts in a configuration with their keys."""
    if isinstance(value, str):
        yield key, value
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        yield from _texts(each, f"{key}.{name}" if key else str(name))


def newest_checkpoint(outputs: Path) -> Path:
    """Find where the newest run under `outputs` goes on (`resume=last`): its whole checkpoint of most steps.

    A run whose checkpoints are all torn is stepped over, which is said. Of a training that never came to a checkpoint
    it is the folder: it begins anew. One that has ended, and whose checkpoints were removed, keeps what it has.

    Raises:
        CheckpointError: there is none.
    """
    runs: dict[Path, list[Path]] = {}
    begun = []
    for path in _files(outputs, "config.yaml", "best.ckpt", "last.ckpt"):
        if path.name == "config.yaml":
            begun.append(path.parent)
        elif (folder := run_folder(path)) is not None:
            runs.setdefault(folder, []).append(path)
    # The first stage of a run stands for it until it has a checkpoint of its own.
    inside = {outer for folder in runs for outer in (folder, folder.parent)}
    runs |= {folder: [] for path in begun if (folder := path.resolve()) not in inside}
    torn: list[Path] = []
    for folder, found in sorted(runs.items(), key=lambda run: _written(*run), reverse=True):
        whole = [path for path in found if is_whole(path)]
        torn += [path for path in found if path not in whole]
        if whole and (folder.parent in runs or not has_ended(folder.parent)):  # else a stage of one that is over
            chosen = max(whole, key=progress)
            if torn and is_first():
                print(printable(f"{_listed(torn)} torn: going on from {chosen}."), flush=True)
            return chosen
        if not found and is_training(folder) and not has_ended(folder):
            if is_first():
                print(f"{folder} has no checkpoint yet: it begins anew.", flush=True)
            return folder
    if torn:
        raise CheckpointError(
            f"No whole checkpoint of a run under {outputs.resolve()}: {_listed(torn)} torn. Start the run again."
        )
    raise CheckpointError(f"No last.ckpt of a run under {outputs.resolve()}: give a path, resume=PATH.")


def _files(outputs: Path, *names: str) -> Iterator[Path]:
    """Find files by their names, however deep they lie; links to folders are not followed."""
    open_folders = [outputs]
    while open_folders:
        with contextlib.suppress(OSError), os.scandir(open_folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    open_folders.append(Path(entry.path))
                elif entry.name in names and entry.is_file():
                    yield Path(entry.path)


def progress(checkpoint: Path) -> tuple[int, bool]:
    """Give by what a checkpoint is further than another: not by the time of its file, which a copy may have changed.

    Of equally many steps last.ckpt is later.
    """
    return step_of(checkpoint), checkpoint.name == "last.ckpt"


def _written(folder: Path, checkpoints: Sequence[Path]) -> float:
    return max(path.stat().st_mtime for path in checkpoints or [folder / "config.yaml"])


def has_ended(folder: Path) -> bool:
    """Tell whether a run has come to its end at least once."""
    return (folder / ENDED).is_file()


def is_training(folder: Path) -> bool:
    """Tell whether a configuration is that of a training, and not of an analysis."""
    try:
        task = values_in(folder).get("task", {})
    except CheckpointError:
        return False
    found = registry.TASKS.get(str(task.get("name", "train")))
    return found is not None and found.resumable


def _listed(paths: Sequence[Path]) -> str:
    shown = ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return f"{shown} {'is' if len(paths) == 1 else 'are'}"
