"""What a job of a sweep notes in its folder, and whether that is another's. Imports neither torch nor Lightning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dkel_lightning.app.runs.kinds import FAILED, NOTE
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.app.runs.settings import differences_of
from dkel_lightning.errors import OtherJobError
from dkel_lightning.runtime.atomic_files import write_text


def note(
    folder: Path, overrides: Sequence[str], state: str, error: BaseException | None = None, *, search: bool = False
) -> None:
    """Note in a job's folder what it was and how it ended, and whether a search proposed it."""
    content: dict[str, Any] = {"overrides": list(overrides), "state": state, "search": search}
    if error is not None:
        content |= {"error": type(error).__name__, "message": str(error) or type(error).__name__}
    write_text(folder / NOTE, json.dumps(content, indent=2) + "\n")


def note_finished(folder: Path) -> None:
    """Note of a run of a sweep or comparison, which had failed or was interrupted, that it has been gone on with."""
    (folder / FAILED).unlink(missing_ok=True)
    noted = RunRecord(folder).job
    if noted:
        note(folder, noted.get("overrides", []), "finished", search=noted.get("search") is True)


def refuse_other(folder: Path, values: Mapping[str, Any]) -> None:
    """Refuse to go on with a job that was begun with other settings.

    Raises:
        OtherJobError: with the differences.
    """
    if found := differences_of(folder, values):
        raise OtherJobError(
            f"{folder} was trained with other settings ({'; '.join(found)}): "
            "give the same settings, or another hydra.sweep.dir."
        )


def is_of_other(folder: Path, overrides: Sequence[str]) -> bool:
    """Tell whether a job's folder holds the note of a job that was set otherwise."""
    noted = RunRecord(folder).job
    return bool(noted) and noted.get("overrides") != list(overrides)
