"""One process at a time works in a folder. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dkel_lightning.errors import DkelError

CLAIM = ".claimed"
"""The file of a run's folder that its process holds: whoever makes it owns the folder."""

PATIENCE = 15.0
"""Seconds to wait for what a killed process leaves behind: its loading workers end, and let go, within 5."""


@contextlib.contextmanager
def held(folder: Path, name: str, patience: float = 0) -> Iterator[None]:
    """Hold a folder for this process, until it ends in whatever way.

    Raises:
        DkelError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise DkelError(f"Another process is working on {folder}: wait for it, or choose another folder.") from None
    except (NotImplementedError, OSError):
        # A file system without locks, or a folder that may only be read: there is nothing to hold on to.
        yield
        return
    try:
        yield
    finally:
        lock.release()
