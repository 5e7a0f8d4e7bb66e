"""How one of several processes tells the one that started it why it ended. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dkel_lightning import errors
from dkel_lightning.errors import DkelError, ProcessError

FOLDER = "DKEL_FAILURES"
"""Environment variable with the folder of the notes; only processes that this library starts have it."""


@dataclass(frozen=True)
class Note:
    """What a process says before it ends: its error's class and message, and when."""

    rank: int
    kind: str
    message: str
    at: float


def is_child() -> bool:
    """Tell whether another process of this library started this one, and says how the run ended."""
    return FOLDER in os.environ


@contextlib.contextmanager
def passed_to_children(folder: Path) -> Iterator[None]:
    """Let the processes that are started meanwhile know where to write."""
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER]


def note(error: DkelError) -> None:
    """Write down why this process ends, for the one that started it, if that is still there."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    content = json.dumps(asdict(Note(rank, type(error).__name__, str(error), time.time())))
    path = Path(os.environ[FOLDER]) / f"{rank}.json"
    temporary = path.with_suffix(".part")
    with contextlib.suppress(OSError):
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)


def notes(folder: Path) -> list[Note]:
    """Read what processes have written, the earliest first."""
    found = [Note(**json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("*.json")]
    return sorted(found, key=lambda each: each.at)


def cause(folder: Path, codes: Mapping[int, int | None]) -> DkelError | None:
    """Say why the first of the processes ended, given their exit codes by rank (None: still running).

    A process that has lost another one says so too, but is not the cause. None if nothing has failed.
    """
    said = notes(folder)
    own = [each for each in said if each.kind != ProcessError.__name__]
    if own:
        kind: type[DkelError] = getattr(errors, own[0].kind, DkelError)
        return kind(f"In process {own[0].rank}: {own[0].message}")
    silent = {rank: code for rank, code in codes.items() if code and rank not in {each.rank for each in said}}
    for rank, code in sorted(silent.items(), key=lambda item: item[1] or 0):
        return ProcessError(_ended(rank, code or 0))
    return ProcessError(said[0].message) if said else None


def _ended(rank: int, code: int) -> str:
    if code > 0:
        return f"Process {rank} failed (exit code {code}); what it says stands above."
    name = signal.Signals(-code).name
    reasons = {
        signal.SIGKILL: "as the system does when memory runs out: lower data.batch_size or data.workers then",
        signal.SIGABRT: "as a GPU's communication does when another process has not answered in time",
    }
    return f"Process {rank} was ended by {name}, {reasons.get(signal.Signals(-code), 'from outside or by a crash')}."
