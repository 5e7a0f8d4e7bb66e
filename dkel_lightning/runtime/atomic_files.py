"""Atomic writes. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` at the end; after an error `path` is unchanged.

    Missing folders are created. Only one process at a time may write a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile, whose files ignore the umask.
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # errors of write() have no file name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write a text file in UTF-8."""
    write_bytes(path, content.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file."""
    with atomic_write(path) as file:
        file.write(content)
