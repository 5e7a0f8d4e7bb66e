"""One process at a time works in a folder. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from dkel_lightning.errors import DkelError, FolderInUseError
from dkel_lightning.runtime.atomic_files import take_over, worked_in
from dkel_lightning.runtime.ranks import is_first

CLAIM = ".claimed"
"""The file of a run's folder that its process holds: whoever makes it owns the folder."""

PATIENCE = 15.0
"""Seconds to wait for what a killed process leaves behind: its loading workers end, and let go, within 5."""

TURN = 3600.0
"""Seconds to wait for another process that prepares the same data."""

_SILENT, _PAUSE = 3.0, 0.05
"""Seconds that are waited without a word, and between two tries."""

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""A lock file is opened without following a link, emptying anything, or waiting for the other end of a pipe."""


@contextlib.contextmanager
def held(folder: Path, name: str, patience: float = 0) -> Iterator[None]:
    """Hold a folder for this process, until it ends in whatever way.

    What a killed process has left half-written there is removed, and while it is held it is not made anew.

    Raises:
        FolderInUseError: another process holds it.
        DkelError: a link in it leads out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as until_the_end:
        # Without locks, or in a folder that may only be read, there is nothing to hold on to.
        with contextlib.suppress(OSError):
            until_the_end.enter_context(_locked(folder / name, patience, f"is working on {folder}"))
        take_over(folder, CLAIM)
        until_the_end.enter_context(worked_in(folder))
        yield


@contextlib.contextmanager
def taking_turns(folder: Path, name: str, what: str) -> Iterator[None]:
    """Let one process at a time prepare `what`; the lock `name` lies in `folder` (made if missing) meanwhile.

    Raises:
        FolderInUseError: another process has held it for `TURN` seconds.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / name, TURN, f"is preparing {what}"):
        try:
            yield
        finally:
            # While it is held: whoever has opened it too finds that it has lost its name, and opens another.
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def own_folder() -> Path:
    """Give the folder for locks of this user's processes on this machine, made if missing.

    Raises:
        DkelError: somebody else has made it.
    """
    user = getattr(os, "getuid", lambda: 0)()
    folder = Path(tempfile.gettempdir()) / f"dkel_lightning_{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o022:
        raise DkelError(
            f"{folder} is a link, or others may write there: remove it, or set TMPDIR to a folder of your own."
        )
    return folder


@contextlib.contextmanager
def _locked(path: Path, patience: float, does: str) -> Iterator[None]:
    """Hold a lock file for which `does` says what its holder is at.

    Raises:
        FolderInUseError: another process holds it.
        DkelError: it is no file of its own.
        OSError: it cannot be opened, or the file system has no locks.
    """
    begun, said = time.monotonic(), False
    while True:
        file = _opened(path)
        try:
            locked = lock_descriptor(file, blocking=False)
            if locked and _is_named(path, file):
                break
            waited, holder = time.monotonic() - begun, _holder(file)
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        if locked:
            continue  # its holder has removed it
        if waited > patience:
            tried = f"; waited {patience:.0f} seconds" if patience else ""
            raise FolderInUseError(f"{holder} {does}{tried}: wait for it, or choose another folder.")
        if waited > _SILENT and not said and is_first():
            print(f"{holder} {does}: waiting up to {patience:.0f} seconds for it.", flush=True)
            said = True
        time.sleep(_PAUSE)
    try:
        _note(file, f"Process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        _note(file, "")
        unlock_descriptor(file)  # closing is not enough: processes that were forked meanwhile have it open too
        os.close(file)


def _opened(path: Path) -> int:
    try:
        file = os.open(path, _FLAGS, 0o666)
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
            return file
        os.close(file)
    except OSError:
        if not path.is_symlink():
            raise
    raise DkelError(f"{path} is a link, or no plain file: remove it.")


def _is_named(path: Path, file: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(file))
    return False


def _note(file: int, holder: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk it is held all the same
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, holder.encode())


def _holder(file: int) -> str:
    said = b""
    with contextlib.suppress(OSError):
        said = os.read(file, 200)
    text = said.decode(errors="replace")
    return text if text.startswith("Process ") and text.isprintable() else "Another process"
