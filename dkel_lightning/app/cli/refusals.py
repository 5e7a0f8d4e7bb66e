"""How a mistake ends the program: one message, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import NoReturn

from dkel_lightning.errors import FULL, ConfigError, DiskFullError, DkelError
from dkel_lightning.runtime import ranks
from dkel_lightning.runtime.texts import printable
from dkel_lightning.settings.keys import shortened

TRACEBACK = "HYDRA_FULL_ERROR"
"""Set to 1, users see tracebacks, and Hydra raises what it would print."""
FORBIDDEN = (errno.EACCES, errno.EROFS)


def fail(error: DkelError) -> NoReturn:
    """Print the message and exit; raise the error where the user wants to see tracebacks."""
    if os.environ.get(TRACEBACK) == "1":
        raise error
    where = "" if ranks.is_first() else f" in process {ranks.rank()}"
    print(f"Error{where}: {printable(error)}", file=sys.stderr)
    raise SystemExit(error.exit_code)


def refusal(error: OSError, folder: Path = Path("outputs"), key: str = "hydra.run.dir") -> DkelError:
    """Name the file that the system refused, and the cure.

    Args:
        error: what the system says.
        folder: where this command writes, as far as it is known.
        key: chooses that folder.

    Raises:
        OSError: what is no mistake of the person at the keyboard.
    """
    if error.errno == errno.ENAMETOOLONG:
        return ConfigError(f"{shortened(str(error.filename))} is too long for the name of a file: shorten it.")
    if error.errno in FULL:
        return DiskFullError.of(error, folder)
    if error.errno in FORBIDDEN:
        path = Path(str(error.filename or folder)).absolute()
        if os.access(path, os.F_OK) and not os.access(path, os.R_OK):
            return DkelError(f"Cannot read {path} ({error.strerror}): make it readable.")
        by = f" with {key}=PATH" if path.is_relative_to(folder.absolute()) else ""
        return DkelError(
            f"Cannot write {path} ({error.strerror}): choose another folder{by}. What was written before is whole."
        )
    raise error
