"""One process at a time works in a folder. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dkel_lightning.errors import FolderInUseError

CLAIM = ".claimed"
"""Lock file of a run's folder."""

PATIENCE = 15.0
"""Seconds to wait for the loading workers of a killed process, which hold its lock until they end."""


@contextlib.contextmanager
def acquire_lock(path: Path, timeout: float = 0.0) -> Iterator[None]:
    """Hold a lock file (made if missing, with its folder); the system releases it when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout)
    except Timeout as error:
        raise FolderInUseError(
            f"Another process is working in {path.parent}: wait for it, or choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
