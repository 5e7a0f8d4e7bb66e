"""One process at a time works in a folder, and whatever ends it lets go."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from dkel_lightning.errors import FolderInUseError
from dkel_lightning.runtime.locks import CLAIM, PATIENCE, acquire_lock


def hold(path: Path, holds: Event) -> None:
    with acquire_lock(path):
        holds.set()
        signal.pause()


def test_a_folder_is_locked_once_and_free_after_its_process_was_killed(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    holds = fork.Event()
    child = fork.Process(target=hold, args=(tmp_path / "run" / CLAIM, holds))
    child.start()
    try:
        assert holds.wait(30)
        with pytest.raises(FolderInUseError, match=f"Another process is working in {tmp_path}/run: wait for it, or"):
            acquire_lock(tmp_path / "run" / CLAIM).__enter__()
    finally:
        child.kill()
        child.join(30)
    for _ in range(2):
        with acquire_lock(tmp_path / "run" / CLAIM, PATIENCE):
            pass
