"""The files of a run: its folder, its configuration, the checkpoints in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from dkel_lightning.app.runs.parsing import parse_settings
from dkel_lightning.checkpoints.archive import is_whole, step_of
from dkel_lightning.errors import CheckpointError
from dkel_lightning.runtime.atomic_files import write_text
from dkel_lightning.runtime.ranks import is_first
from dkel_lightning.runtime.texts import printable

_GROUPS: tuple[str, ...] = ("task", "data", "backbone", "method", "teacher", "deploy", "optimizer", "scheduler")
_GROUPS += ("trainer", "precision", "execution", "logger", "callbacks")
"""Of a run's config.yaml, what holds keys of its own."""


@dataclass(frozen=True)
class Run:
    """A run: its resolved settings and its folder.

    Attributes:
        values: the resolved configuration.
        folder: where everything is written.
        resume: the checkpoint to go on from, None for a new run.
        part: whether a larger task runs it, which says itself how it ended and how to go on.
    """

    values: Mapping[str, Any]
    folder: Path
    resume: Path | None = None
    part: bool = False

    @property
    def checkpoints(self) -> Path:
        """The folder of last.ckpt and best.ckpt."""
        return self.folder / "checkpoints"

    @rank_zero_only
    def describe(self, execution: Mapping[str, Any] | None = None) -> None:
        """Write config.yaml and provenance.json; a resumed run keeps the configuration that it began with.

        What is known of how the steps are executed is written too, `execution`; see `note_execution`.
        """
        if self.resume is None:
            write_text(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(self.values))))
        from dkel_lightning.runtime import provenance  # needs torch, which the command line does without

        self.write_json(self._provenance, {**provenance.collect(), "execution": execution})

    @rank_zero_only
    def note_execution(self, execution: Mapping[str, Any] | None) -> None:
        """Write into provenance.json how the steps were executed in the end."""
        path = self.folder / self._provenance
        self.write_json(path.name, {**json.loads(path.read_text(encoding="utf-8")), "execution": execution})

    @property
    def _provenance(self) -> str:
        return "provenance.json" if self.resume is None else "provenance_resumed.json"

    @rank_zero_only
    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder."""
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
    folder = run_folder(checkpoint)
    if folder is None:
        raise CheckpointError(
            f"{checkpoint} has no run around it: its config.yaml should lie at "
            f"{checkpoint.resolve().parent.parent / 'config.yaml'}."
        )
    return values_in(folder)


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
        values = parse_settings(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {cure}") from error
    for key, text in _texts(values):
        if "${" in text:
            raise CheckpointError(f"{path} was not read: {key} holds {text!r}, and no run writes a ${{...}}; {cure}")
    for group in _GROUPS:
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

    A run whose checkpoints are all torn is stepped over, which is said.

    Raises:
        CheckpointError: there is none.
    """
    runs: dict[Path, list[Path]] = {}
    for name in ("best.ckpt", "last.ckpt"):
        for path in outputs.rglob(name):
            if (folder := run_folder(path)) is not None:
                runs.setdefault(folder, []).append(path)
    torn: list[Path] = []
    for found in sorted(runs.values(), key=lambda paths: max(path.stat().st_mtime for path in paths), reverse=True):
        whole = [path for path in found if is_whole(path)]
        torn += [path for path in found if path not in whole]
        if whole:
            # Not the newest file, which a copy may have made of any. Of equally many steps last.ckpt, which is later.
            chosen = max(whole, key=lambda path: (step_of(path), path.name == "last.ckpt"))
            if torn and is_first():
                print(printable(f"{_listed(torn)} torn: going on from {chosen}."), flush=True)
            return chosen
    if torn:
        raise CheckpointError(
            f"No whole checkpoint of a run under {outputs.resolve()}: {_listed(torn)} torn. Start the run again."
        )
    raise CheckpointError(f"No last.ckpt of a run under {outputs.resolve()}: give a path, resume=PATH.")


def _listed(paths: Sequence[Path]) -> str:
    shown = ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return f"{shown} {'is' if len(paths) == 1 else 'are'}"
