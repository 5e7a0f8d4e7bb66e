"""What the settings in a file of weights may not ask for."""

from __future__ import annotations

from pathlib import Path

from dkel_lightning.errors import CheckpointError
from dkel_lightning.settings.backbone import reads_a_folder


def refuse_folder(path: str | Path, key: str, name: object) -> None:
    """Refuse a backbone `hf:FOLDER` that a file names: only a folder that is typed again (as `key`) is read."""
    if reads_a_folder(name):
        raise CheckpointError(
            f"{path} was trained with {name}, and no file chooses a folder that is read: pass {key}= to load it "
            "(trust=true on the command line)."
        )
