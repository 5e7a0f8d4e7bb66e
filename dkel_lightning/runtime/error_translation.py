"""One line of our own for what torch or the system says of full memory, a full disk or a lost process."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch

from dkel_lightning.errors import FULL, DiskFullError, DkelError, MemoryFullError, ProcessError, full_disk

_LOST = re.compile(r"gloo|NCCL|pair closure|by peer|Broken pipe|Socket Timeout|c10d", re.IGNORECASE)
_LATE = re.compile(r"timed? ?out", re.IGNORECASE)
_FULL = re.compile(r"out of memory|can(no|')t allocate memory", re.IGNORECASE)


@contextlib.contextmanager
def errors_named(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Raise what `named_error` makes of an error.

    Args:
        how_to_go_on: a sentence, added to errors that a new start may cure.

    Raises:
        DkelError: what was wrong, where that is known.
    """
    try:
        yield
    except Exception as error:
        named = named_error(error)
        if isinstance(named, ProcessError | MemoryFullError | DiskFullError) or full_disk(named) is not None:
            named = type(named)(f"{named} {how_to_go_on()}".strip())
        if named is error:
            raise
        raise named from error


def named_error(error: Exception) -> Exception:
    """Give what stands for a lost process, or for memory or a disk that is full, an error of its own."""
    text = str(error)
    if isinstance(error, DkelError):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        return DiskFullError.of(error)
    if isinstance(error, MemoryError | RuntimeError | OSError) and (
        _FULL.search(text) or isinstance(error, MemoryError)
    ):
        first = (text.strip().splitlines() or ["the system has none left"])[0]
        return MemoryFullError(
            f"Out of memory ({first}): lower data.batch_size, choose precision=bf16, or keep the images off the "
            "device with data.residency=workers."
        )
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        first = text.splitlines()[0].rstrip(".")
        return ProcessError(
            f"A process that reads images has ended ({first}), as the system does when memory runs out: lower "
            "data.workers or data.batch_size."
        )
    if not torch.distributed.is_available():
        return error
    several = torch.distributed.is_initialized()
    if isinstance(error, torch.distributed.DistError) or (
        several and isinstance(error, RuntimeError) and _LOST.search(text)
    ):
        if _LATE.search(text):
            return ProcessError("Another process has not answered within trainer.process_timeout: it hangs or is slow.")
        return ProcessError(
            "Another process of this training has ended. If it does not say why, it was killed, as the system does "
            "when memory runs out: lower data.batch_size or data.workers then."
        )
    return error
