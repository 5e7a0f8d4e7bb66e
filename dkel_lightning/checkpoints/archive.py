"""What the archive of a checkpoint says before anything in it is loaded. Imports neither torch nor Lightning."""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from pathlib import Path

BROKEN = (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint, which is a zip archive, has all its bytes as they were written."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except BROKEN:
        return False


def step_of(checkpoint: Path) -> int:
    """Read the optimizer step of a checkpoint, without running or building anything; -1 where none is found.

    Lightning writes `global_step` among the first entries, as a whole number that follows its name.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            named = False
            for operation, argument, _ in pickletools.genops(archive.read(name) if name else b""):
                if named and isinstance(argument, int) and "PUT" not in operation.name:
                    return argument
                named = argument == "global_step" or (named and "PUT" in operation.name)
    except (*BROKEN, ValueError):
        pass
    return -1
