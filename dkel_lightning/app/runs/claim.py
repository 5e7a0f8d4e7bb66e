"""The folder that a run, a sweep or an evaluation takes for itself. Imports neither torch nor Lightning.

What lies in a folder says whose it is. `config.yaml`: a run has taken it (`begin`). `.claimed`: a process works in it,
for as long as it holds that file (`acquire_lock`), or an evaluation or a sweep has taken it (`claim`). `job.json`,
`failed.txt`: how a job of a sweep, a member of a comparison ended (`kinds`). `summary.json`: the run was tested, which
comes last (`folder.ENDED`). An interruption leaves no mark: what was begun and has not ended is gone on with.
"""

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

    Args:
        folder: the one that is wanted.
        owner: what it is taken for; the same owner gets the same folder again. Empty: whoever comes gets a new one.
    """
    return _taken(folder, CLAIM, owner, again=bool(owner))


def begin(folder: Path, settings: str) -> Path:
    """Make the folder of a run with its config.yaml, or the first of those beside it that holds none.

    A run that is killed right after this can be resumed.
    """
    return _taken(folder, SETTINGS, settings)


def _taken(folder: Path, name: str, text: str, *, again: bool = False) -> Path:
    """Take a folder by a file that is there whole or not at all: whoever makes it owns the folder.

    Of two processes that start in the same second, which must not mix their files, one goes on to the next folder.
    """
    for candidate in numbered(folder):
        candidate.mkdir(parents=True, exist_ok=True)
        if again and read_text(candidate / name) == text:
            return candidate
        if os.path.lexists(candidate / name) or (again and any(candidate.iterdir())):
            continue  # of somebody else, or of a copy that left hidden files out
        written = candidate / f".begun.{uuid.uuid4().hex}{HALF_WRITTEN}"
        try:
            write_text(written, text)
            with contextlib.suppress(FileExistsError):  # another process was first
                _give_name(written, candidate / name)
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
