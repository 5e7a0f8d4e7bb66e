"""One process at a time works in a folder, and whatever ends it lets go."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

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
    with held_elsewhere(tmp_path) as child, pytest.raises(DkelError) as caught:
        locks.held(tmp_path, locks.CLAIM).__enter__()
    assert re.match(rf"Process {child.pid} on \S+ is working on {tmp_path}: wait for it, or", str(caught.value))
    for _ in range(2):
        with locks.held(tmp_path, locks.CLAIM):
            pass


def test_a_killed_process_lets_go_as_soon_as_its_workers_have_ended(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path, leave_a_worker) as child:
        time.sleep(0.2)
        child.kill()
        child.join(30)
        with locks.held(tmp_path, locks.CLAIM, locks.PATIENCE):
            pass


@pytest.mark.parametrize("error", [OSError(38, "Function not implemented"), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_worked_on_all_the_same(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(locks, "lock_descriptor", fails)
    with locks.held(tmp_path, locks.CLAIM):
        (tmp_path / "done").touch()
    assert (tmp_path / "done").is_file()


def linked(lock: Path, file: Path) -> None:
    lock.symlink_to(file)


def linked_hard(lock: Path, file: Path) -> None:
    lock.hardlink_to(file)


def piped(lock: Path, file: Path) -> None:
    os.mkfifo(lock)


@pytest.mark.parametrize("spoil", [linked, linked_hard, piped])
@pytest.mark.parametrize("take", [locks.held, lambda folder, name: locks.taking_turns(folder, name, "images")])
def test_a_lock_that_a_stranger_has_laid_there_touches_no_other_file_and_is_named(
    spoil: Callable[[Path, Path], None], take: Callable[..., AbstractContextManager[None]], tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    mine = tmp_path / "thesis.tex"
    mine.write_text("years of work")
    spoil(tmp_path / "theirs" / locks.CLAIM, mine)
    with (
        pytest.raises(DkelError, match=r"theirs/\.claimed is a link, or no plain file: remove it"),
        take(tmp_path / "theirs", locks.CLAIM),
    ):
        pass
    assert mine.read_text() == "years of work"


def test_who_waits_for_a_turn_says_for_whom_and_gives_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "TURN", 0.3)
    monkeypatch.setattr(locks, "_SILENT", 0.1)
    with held_elsewhere(tmp_path) as child:
        holder = rf"Process {child.pid} on \S+ is preparing images"
        with pytest.raises(DkelError, match=holder + "; waited 0 seconds: wait for it"):
            locks.taking_turns(tmp_path, locks.CLAIM, "images").__enter__()
    assert re.fullmatch(holder + ": waiting up to 0 seconds for it\\.\n", capsys.readouterr().out)


def add_in_turns(folder: Path, times: int) -> None:
    for _ in range(times):
        with locks.taking_turns(folder, ".lock", "a number"):
            found = int((folder / "number").read_text())
            time.sleep(0.001)
            (folder / "number").write_text(str(found + 1))


def test_a_lock_that_is_removed_after_each_turn_still_lets_in_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    children = [fork.Process(target=add_in_turns, args=(tmp_path, 10)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert (tmp_path / "number").read_text() == "40"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_locks_of_this_user_lie_in_a_folder_that_nobody_else_can_have_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = locks.own_folder()
    assert folder == locks.own_folder() == tmp_path / f"dkel_lightning_{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(DkelError, match="or others may write there: remove it, or set TMPDIR"):
        locks.own_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(DkelError, match="is a link"):
        locks.own_folder()
