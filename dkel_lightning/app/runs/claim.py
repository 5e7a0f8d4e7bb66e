"""The folder that a run, a sweep or an evaluation takes for itself. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from dkel_lightning.runtime.locks import CLAIM


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
            continue  # of a version that claimed no folder
        try:
            with file.open("xb") as created:
                created.write(owner.encode())
        except FileExistsError:
            if not owner or file.read_bytes() != owner.encode():
                continue  # of another owner, or not yet written
        return candidate
    raise AssertionError("unreachable")


def release(folder: Path) -> None:
    """Remove a folder into which nothing was written but the claim."""
    with contextlib.suppress(OSError):  # rmdir refuses a folder that holds anything
        if {path.name for path in folder.iterdir()} == {CLAIM}:
            (folder / CLAIM).unlink()
        folder.rmdir()


def numbered(folder: Path) -> Iterator[Path]:
    """Give the folder, and those beside it with a number behind its name."""
    folder = folder if folder.name.strip(".") else folder.resolve()
    yield folder
    yield from (folder.with_name(f"{folder.name}_{count}") for count in itertools.count(1))
