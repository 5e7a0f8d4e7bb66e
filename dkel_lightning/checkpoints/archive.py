"""Check the checksums of a checkpoint's ZIP archive. Imports neither torch nor Lightning."""

from __future__ import annotations

import zipfile
from pathlib import Path


def fault(path: Path) -> str | None:
    """Return what is wrong with an archive, or None. torch does not compare checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zipfile has no common error for torn archives
        return str(error) or type(error).__name__
    return None if damaged is None else f"the checksum of {damaged} does not match"


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint is intact."""
    return checkpoint.is_file() and fault(checkpoint) is None
