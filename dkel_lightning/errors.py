"""Errors that name the thing at fault and its cure. Imports neither torch nor Lightning."""

from __future__ import annotations


class DkelError(Exception):
    """Base of every error this library raises on purpose.

    The message is written for the person at the keyboard: what is wrong, where, and what to do.
    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class ConfigError(DkelError, ValueError):
    """A setting that is unknown, out of range, or contradicts another one."""

    exit_code = 2


class DataError(DkelError):
    """Data that is missing, damaged, or not what was promised."""


class CheckpointError(DkelError):
    """A checkpoint that is missing, torn, or belongs to something else."""


class NonFiniteError(DkelError):
    """A loss or weight that is NaN or infinite."""
