"""Files that are whole at any moment, and errors that name the file. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from filelock import lock_descriptor

from dkel_lightning.errors import DkelError

HALF_WRITTEN = ".part"
"""How the hidden name of a file ends that is not whole yet."""


def write_text(path: Path, content: str) -> None:
    """Write a text file as `written_whole` does."""
    write_bytes(path, content.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as `written_whole` does.

    Libraries that write by themselves fail of a full disk in ways of their own, up to ending the process: let them
    write into memory, and give this what they wrote.
    """
    with written_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write into that takes the place of `path` at the end: what has that name is whole at any moment.

    Whoever is killed leaves the temporary file; the next who writes the same file removes it.

    Raises:
        OSError: with the name of the file.
        DkelError: the folder that is worked in has gone.
    """
    make_folder(path.parent)
    temporary: Path | None = None
    try:
        with naming(path):
            _remove_abandoned(path)
            temporary, file = _temporary(path)
            with file:
                yield file
            temporary.replace(path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> tuple[Path, IO[bytes]]:
    """Open a file that is locked, by which others know that somebody writes it."""
    while True:
        # Not mkstemp, whose files only their owner may read, whatever the umask says.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{HALF_WRITTEN}")
        file = temporary.open("xb")
        with contextlib.suppress(OSError):  # a file system without locks, where nobody can ask
            lock_descriptor(file.fileno(), blocking=False)
        if temporary.exists():
            return temporary, file
        file.close()  # taken for an abandoned one before it was locked


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{HALF_WRITTEN}"):
        with contextlib.suppress(OSError), opened(left, "r+b") as file:
            if lock_descriptor(file.fileno(), blocking=False):
                left.unlink()


def opened(path: Path, mode: str = "rb") -> IO[bytes]:
    """Open a regular file: to open a pipe would wait for whoever is at its other end.

    Raises:
        OSError: there is none, or it may not be opened.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no regular file", str(path))
    return cast("IO[bytes]", path.open(mode))


def text_of(path: Path) -> str:
    """Read a regular file as text.

    Raises:
        OSError: as `opened`.
        UnicodeDecodeError: it is no text; a ValueError.
    """
    with opened(path) as file:
        return file.read().decode("utf-8")


def digest(path: Path, kind: str) -> str:
    """Give the `md5` or `sha256` of a regular file in hexadecimal.

    Raises:
        OSError: as `opened`.
    """
    found = hashlib.new(kind, usedforsecurity=False)
    with opened(path) as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError name this file: writing names none, and a temporary file says nothing to anybody."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


# ---------------------------------------------------------------------- folders that are worked in

_WORKED_IN: list[Path] = []
_LINKS_OF_ITS_OWN = "wandb"
"""The folder in which Weights & Biases keeps links to its log; it writes into a new one each time."""


def make_folder(folder: Path) -> None:
    """Make the folder of a file, with its parents; never anew one that is worked in, which was moved away then.

    Raises:
        DkelError: it was.
    """
    for own in _WORKED_IN:
        if folder.is_relative_to(own) and not own.is_dir():
            raise DkelError(f"{own} has gone: it was moved or removed during the run. Go on with resume=FOLDER.")
    folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def worked_in(folder: Path) -> Iterator[None]:
    """Let a folder not be made anew while this lasts."""
    _WORKED_IN.append(folder)
    try:
        yield
    finally:
        _WORKED_IN.remove(folder)


def take_over(folder: Path, claim: str) -> None:
    """Remove what a killed process has left half-written in a folder that nobody else writes into.

    A folder in it that has a file called `claim` is that of another run, which takes it over on its own.

    Raises:
        DkelError: a link leads out of it, through which something would be written elsewhere.
    """
    root = folder.resolve()
    others: set[Path] = set()
    for place, folders, files in os.walk(root):
        here = Path(place)
        if here != root and (claim in files or here.parent in others):
            others.add(here)
        for path in (here / name for name in (*folders, *files)):
            if path.is_symlink():
                if not path.resolve().is_relative_to(root):
                    raise DkelError(
                        f"{path} is a link to {path.resolve()}: a run writes in its own folder only. Remove it."
                    )
            elif here not in others and path.match(f".*{HALF_WRITTEN}") and path.is_file():
                path.unlink(missing_ok=True)
        if here == root or claim in files:
            folders[:] = [name for name in folders if name != _LINKS_OF_ITS_OWN]
