"""Whether a checkpoint is whole, by the checksums of its ZIP archive. Imports neither torch nor Lightning."""

from __future__ import annotations

import zipfile
from pathlib import Path


def fault(path: Path) -> str | None:
    """Compare every member with its checksum, which torch does not do; None if all of them match."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile has no common error for torn archives
        return str(error) or type(error).__name__
    return None if damaged is None else f"the checksum of {damaged} does not match"


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has all its bytes as they were written."""
    return checkpoint.is_file() and fault(checkpoint) is None
