"""Whether anybody reads what is printed. Imports neither torch nor Lightning."""

from __future__ import annotations

import os
import select
import sys
from typing import TextIO

UNREAD = 141
"""Exit code of a program whose output nobody reads any more: the shell's for SIGPIPE, 128 + 13."""


def is_unread(error: BaseException | None = None) -> bool:
    """Tell whether the reader of what is printed has gone, as `| head` does; from then on it goes nowhere.

    It tells so once: Python would complain at its end of what it could not write.

    Args:
        error: what could not be written just now, perhaps to somewhere else; without it only what still waits counts.
    """
    gone = False
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and (_cannot_flush(stream) or (error is not None and _has_no_reader(stream))):
            leave(stream.fileno())
            gone = True
    return gone


def end_if_unread(error: BaseException) -> None:
    """End the program without a word where `error` is that the reader of what is printed has gone.

    Raises:
        SystemExit: it has.
    """
    if isinstance(error, BrokenPipeError) and is_unread(error):
        raise SystemExit(UNREAD) from None


def leave(stream: int) -> None:
    """Let a file descriptor lead nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)


def _cannot_flush(stream: TextIO) -> bool:
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    return False


def _has_no_reader(stream: TextIO) -> bool:
    """Ask the system: what was written without a buffer leaves nothing to flush."""
    try:
        place = stream.fileno()
    except (OSError, ValueError):  # no stream of the system's, as under a test
        return False
    if not hasattr(select, "poll"):
        return False
    asked = select.poll()
    asked.register(place, 0)
    return any(event & select.POLLERR for _, event in asked.poll(0))
