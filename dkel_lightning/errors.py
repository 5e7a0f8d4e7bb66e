"""Errors that name the thing at fault and its cure. Imports neither torch nor Lightning."""

from __future__ import annotations

import signal
from pathlib import Path


class DkelError(Exception):
    """Base of every error this library raises on purpose.

    The message is written for the person at the keyboard: what is wrong, where, and what to do.
    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class ConfigError(DkelError, ValueError):
    """A setting that is unknown, out of range, or contradicts another one."""

    exit_code = 2


class FolderInUseError(DkelError):
    """A folder that another process uses."""


class DataError(DkelError):
    """Data that is missing, damaged, or of another form than declared."""


class CheckpointError(DkelError):
    """A checkpoint that is missing, damaged, or of another configuration."""


class CollapseError(DkelError):
    """A training that has collapsed."""


class NonFiniteError(CollapseError):
    """A loss or weight that is NaN or infinite."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    # str() of a KeyError is the repr of its message.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


class Interrupted(SystemExit):
    """The training was stopped by a signal, after a checkpoint where one was asked for.

    A SystemExit, so that nothing between the training and the shell takes it for a failure. The exit code is the
    shell's for a signal, 128 + number.

    Args:
        number: the signal.
        checkpoint: from which the training goes on; None if nothing was saved.
        step: the optimizer step at which it stopped; None if it stopped at once.
    """

    def __init__(self, number: int, checkpoint: Path | None, step: int | None) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name
        self.checkpoint = checkpoint
        self.step = step
