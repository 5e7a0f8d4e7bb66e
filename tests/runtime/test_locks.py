"""One process at a time works in a folder, and whatever ends it lets go."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from filelock import FileLock

from dkel_lightning.errors import DkelError
from dkel_lightning.runtime import locks

fork = multiprocessing.get_context("fork")


def hold(folder: Path, holds: Event, then: Callable[[], None]) -> None:
    with locks.held(folder, locks.CLAIM):
        holds.set()
        then()


@contextlib.contextmanager
def held_elsewhere(folder: Path, then: Callable[[], None] = signal.pause) -> Iterator[BaseProcess]:
    """Hold a folder in a process of its own."""
    holds = fork.Event()
    child = fork.Process(target=hold, args=(folder, holds, then))
    child.start()
    try:
        assert holds.wait(30)
        yield child
    finally:
        child.kill()
        child.join(30)


def leave_a_worker() -> None:
    """Start a process that outlives this one for a moment, as those that load images do."""
    if os.fork() == 0:
        time.sleep(1)
        os._exit(0)
    signal.pause()


def test_a_folder_is_held_once_and_let_go_of(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path), pytest.raises(DkelError, match=f"Another process is working on {tmp_path}: wait"):
        locks.held(tmp_path, locks.CLAIM).__enter__()
    for _ in range(2):
        with locks.held(tmp_path, locks.CLAIM):
            pass


def test_a_killed_process_lets_go_as_soon_as_its_workers_have_ended(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path, leave_a_worker) as child:
        time.sleep(0.2)
        child.kill()
        child.join(30)
        # Whether the worker holds the folder too depends on the version of filelock.
        with locks.held(tmp_path, locks.CLAIM, locks.PATIENCE):
            pass


@pytest.mark.parametrize("error", [NotImplementedError("no flock here"), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_worked_on_all_the_same(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", fails)
    with locks.held(tmp_path, locks.CLAIM):
        (tmp_path / "done").touch()
    assert (tmp_path / "done").is_file()
