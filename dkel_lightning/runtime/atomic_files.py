"""Files that are whole at any moment. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` (folders are made) that takes its name at the end; an error leaves `path`.

    One process at a time writes a file. What a killed process has left, the next write replaces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile, whose files only their owner may read, whatever the umask says.
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # writing names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write a whole text file, in UTF-8."""
    write_bytes(path, content.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file."""
    with atomic_write(path) as file:
        file.write(content)
