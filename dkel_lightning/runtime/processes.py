"""Collectives that do nothing in a single process."""

from __future__ import annotations

import atexit
import functools
import time
from typing import TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

T = TypeVar("T")

GLOO_EXIT = 0.2
"""Seconds; the threads need milliseconds."""


def broadcast_from_rank_zero(value: T) -> T:
    """Return the value of the first process; all processes must call this."""
    if world_size() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def average_over_processes(tensors: list[Tensor]) -> None:
    """Average each tensor over the processes, in place; all processes must call this."""
    if world_size() == 1:
        return
    for tensor in tensors:
        torch.distributed.all_reduce(tensor)
        tensor /= world_size()


def make_equal(tensors: list[Tensor]) -> None:
    """Copy the tensors of the first process to all others, in place; all processes must call this."""
    if world_size() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.data, src=0)


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return int(torch.distributed.get_world_size())


def process_rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return int(torch.distributed.get_rank()) if world_size() > 1 else 0


def outlast_threads() -> None:
    """Wait a moment at the exit of a process with a gloo group.

    Threads of gloo free the tensors of the last collectives after a short delay. If the interpreter is gone by then,
    they abort the process (torch 2.14: 12 of 104 short processes).
    """
    if world_size() > 1 and "gloo" in torch.distributed.get_backend():
        _wait_at_end()


@functools.cache
def _wait_at_end() -> None:
    atexit.register(time.sleep, GLOO_EXIT)


@rank_zero_only
def print_once(line: str) -> None:
    """Print a line on the first process."""
    print(line, flush=True)
