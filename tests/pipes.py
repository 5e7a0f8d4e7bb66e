"""Pipes in the place of files, which nobody may wait for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def piped(path: Path) -> None:
    """Put a pipe in the place of a file."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@contextmanager
def not_waited_for(seconds: int = 20) -> Iterator[None]:
    """Fail where something takes so long."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waited"))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
