"""What several processes of one training say to each other; in a single one nothing is to be done."""

from __future__ import annotations

import atexit
import functools
import time
from typing import TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from dkel_lightning.runtime.texts import printable

T = TypeVar("T")

LET_GO = 0.2
"""Seconds at the end of a process for the threads of its group; they need milliseconds."""


def any_process(flag: bool, device: torch.device) -> bool:
    """Tell whether `flag` is set on any process; all of them must call this. Reads back from the device."""
    if world_size() == 1:
        return flag
    verdict = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(verdict, op=torch.distributed.ReduceOp.MAX)
    return bool(verdict)


def broadcast_from_rank_zero(value: T) -> T:
    """Return what the first process has given; all of them must call this."""
    if world_size() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def average_over_processes(tensors: list[Tensor]) -> None:
    """Average each tensor over the processes in place; all of them must call this."""
    if world_size() == 1:
        return
    for tensor in tensors:
        torch.distributed.all_reduce(tensor)
        tensor /= world_size()


def make_equal(tensors: list[Tensor]) -> None:
    """Give all processes the tensors of the first; all of them must call this."""
    if world_size() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.data, src=0)


def world_size() -> int:
    """Return the number of processes, 1 outside of a group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return int(torch.distributed.get_world_size())


def outlast_threads() -> None:
    """Have a process of several wait a moment at its end, whatever ends it.

    The threads of a gloo group free the tensors of what they did last a little later than it is done, and need Python
    for that. Where Python ends just then they abort the process: a training that is through would count as failed
    (torch 2.14: 12 of 104 processes that did little else than a few collectives).
    """
    if world_size() > 1 and "gloo" in torch.distributed.get_backend():
        _wait_at_end()


@functools.cache
def _wait_at_end() -> None:
    atexit.register(time.sleep, LET_GO)


@rank_zero_only
def print_once(line: str) -> None:
    """Print a line once, however many processes come by."""
    print(printable(line), flush=True)
