"""Files that are whole at any moment, and errors that name the file. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

HALF_WRITTEN = ".part"
"""How the hidden name of a file ends that is not whole yet; checkpoints and records of a collapse too."""


def write_text(path: Path, content: str) -> None:
    """Write a text file through a temporary one, so that it is whole at any moment."""
    write_bytes(path, content.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file through a temporary one, so that it is whole at any moment.

    Libraries that write by themselves fail of a full disk in ways of their own, up to ending the process: let them
    write into memory, and give this what they wrote.

    Raises:
        OSError: with the name of the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary: Path | None = None
    try:
        with naming(path):
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=HALF_WRITTEN, dir=path.parent)
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            temporary.chmod(0o644)
            temporary.replace(path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError name this file: writing names none, and a temporary file says nothing to anybody."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
