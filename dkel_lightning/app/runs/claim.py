"""The folder that a run, a sweep or an evaluation takes for itself. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
import itertools
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from dkel_lightning.app.runs.parsing import read_text
from dkel_lightning.runtime.atomic_files import HALF_WRITTEN, write_text
from dkel_lightning.runtime.locks import CLAIM

SETTINGS = "config.yaml"


def claim(folder: Path, owner: str = "") -> Path:
    """Make the folder and take it, or the first of those beside it that nobody has taken.

    Two processes that start in the same second must not mix their files.

    Args:
        folder: the one that is wanted.
        owner: what it is taken for; the same owner gets the same folder again. Empty: whoever comes gets a new one.
    """
    for candidate in numbered(folder):
        candidate.mkdir(parents=True, exist_ok=True)
        file = candidate / CLAIM
        if owner and not file.exists() and any(candidate.iterdir()):
            continue  # of a copy that left hidden files out
        try:
            with file.open("xb") as created:
                created.write(owner.encode())
        except FileExistsError:
            if not owner or read_text(file) != owner:
                continue  # of another owner, or not yet written
        return candidate
    raise AssertionError("unreachable")


def begin(folder: Path, settings: str) -> Path:
    """Make the folder of a run with its config.yaml, or the first of those beside it that holds none.

    The file is there whole or not at all, and whoever makes it owns the folder: of two processes that start in the same
    second one goes on to the next folder, and a run that is killed right after this can be resumed.
    """
    for candidate in numbered(folder):
        candidate.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(candidate / SETTINGS):
            continue
        written = candidate / f".begun.{uuid.uuid4().hex}{HALF_WRITTEN}"
        try:
            write_text(written, settings)
            with contextlib.suppress(FileExistsError):  # another process was first
                _give_name(written, candidate / SETTINGS)
                return candidate
        finally:
            written.unlink(missing_ok=True)
    raise AssertionError("unreachable")


def _give_name(written: Path, path: Path) -> None:
    """Rename a file unless the name is taken.

    Raises:
        FileExistsError: it is, or another process is giving it at this moment.
    """
    try:
        path.hardlink_to(written)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, where a rename would take the place of what is there
        turn = path.with_name(f".begun{HALF_WRITTEN}")
        turn.open("xb").close()
        try:
            if os.path.lexists(path):
                raise FileExistsError(path) from None
            written.rename(path)
        finally:
            turn.unlink()


def release(folder: Path, *, begun: bool = False) -> None:
    """Remove a folder into which nothing was written but the claim and, where `begun` by this process, config.yaml."""
    own = {CLAIM, SETTINGS} if begun else {CLAIM}
    with contextlib.suppress(OSError):  # rmdir refuses a folder that holds anything
        if {path.name for path in folder.iterdir()} <= own:
            for name in own:
                (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def numbered(folder: Path) -> Iterator[Path]:
    """Give the folder, and those beside it with a number behind its name."""
    folder = folder if folder.name.strip(".") else folder.resolve()
    yield folder
    yield from (folder.with_name(f"{folder.name}_{count}") for count in itertools.count(1))
