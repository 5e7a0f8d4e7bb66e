"""What the archive of a checkpoint says before anything in it is loaded. Imports neither torch nor Lightning."""

from __future__ import annotations

import os
import pickletools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

from dkel_lightning.runtime.atomic_files import opened

BROKEN = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def fault(file: IO[bytes]) -> str | None:
    """Say why an archive is not as torch has written it, None if it is: every byte is held against its checksum.

    Torch stores members as they are and looks at no checksum. Of packed or overlapping members a few megabytes can
    stand for many gigabytes, so sizes are read before contents.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                return "its members are compressed"
            if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
                return "its members claim more bytes than it has"
            wrong = archive.testzip()
    except BROKEN as error:
        return str(error) or type(error).__name__
    return None if wrong is None else f"the checksum of {wrong} is another"


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint is a regular file that has all its bytes as they were written."""
    try:
        with opened(checkpoint) as file:
            return fault(file) is None
    except OSError:
        return False


def step_of(checkpoint: Path) -> int:
    """Read the optimizer step of a whole checkpoint, without running or building anything; -1 where none is found.

    Lightning writes `global_step` among the first entries, as a whole number that follows its name.
    """
    try:
        with opened(checkpoint) as file, zipfile.ZipFile(file) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            named = False
            for operation, argument, _ in pickletools.genops(archive.read(name) if name else b""):
                if named and isinstance(argument, int) and "PUT" not in operation.name:
                    return argument
                named = argument == "global_step" or (named and "PUT" in operation.name)
    except BROKEN:
        pass
    return -1
