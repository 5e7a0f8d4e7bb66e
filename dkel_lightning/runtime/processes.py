"""What each process of a training holds of its own, and how a checkpoint keeps it.

Weights are equal on all processes. Not equal are the states of the random generators, BatchNorm's running statistics
between two validations, and the sums of the epoch's metrics. A checkpoint is written by the first process, so the
others' own state travels to it; a resume with as many processes gives each its own back.
"""

from __future__ import annotations

import atexit
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchmetrics import Metric

from dkel_lightning.runtime.seeding import random_state, restore_random_state

T = TypeVar("T")

LET_GO = 0.2
"""Seconds at the end of a process for the threads of its group; they need milliseconds."""

Own = dict[str, Any]
"""`random`: the generators; `tensors`: by name in the state dict, only where there are several processes."""


def gather(module: LightningModule) -> list[Own]:
    """Collect the own state of every process; all of them must call this."""
    mine: Own = {"random": random_state(module.device), "tensors": {}}
    if world_size() == 1:
        return [mine]  # the state dict has the rest
    mine["tensors"] = {name: value.detach().cpu() for name, value in own_tensors(module).items()}
    gathered: list[Own] = [{} for _ in range(world_size())]
    torch.distributed.all_gather_object(gathered, mine)
    return gathered


def restore_tensors(module: LightningModule, processes: Sequence[Own]) -> None:
    """Give this process its own tensors back; of another number of processes they stay as in the state dict."""
    if len(processes) != world_size() or world_size() == 1:
        return
    targets = own_tensors(module)
    with torch.no_grad():
        for name, value in processes[torch.distributed.get_rank()]["tensors"].items():
            if name in targets:
                targets[name].copy_(value)


def restore_generators(module: LightningModule, processes: Sequence[Own]) -> None:
    """Put this process's generators into their state, if the checkpoint is of as many processes."""
    if len(processes) == world_size():
        rank = torch.distributed.get_rank() if world_size() > 1 else 0
        restore_random_state(processes[rank]["random"], module.device)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return BatchNorm's running statistics and the persistent sums of metrics, by their names in the state dict."""
    found: dict[str, Tensor] = {}
    for prefix, part in module.named_modules():
        if isinstance(part, _NormBase):
            found |= {f"{prefix}.{name}": value for name, value in part.named_buffers(recurse=False)}
        elif isinstance(part, Metric):
            kept = {name: getattr(part, name) for name, persistent in part._persistent.items() if persistent}
            found |= {f"{prefix}.{name}": value for name, value in kept.items() if isinstance(value, Tensor)}
    return found


def average_statistics(module: nn.Module, state_dict: dict[str, Any]) -> None:
    """Put the mean over the processes of BatchNorm's statistics into `state_dict`; the module keeps its own.

    Saving must not change what is trained: a run that was asked to save in between would end elsewhere.
    """
    if world_size() == 1:
        return
    for prefix, part in module.named_modules():
        for name in ("running_mean", "running_var") if isinstance(part, _NormBase) else ():
            key = f"{prefix}.{name}"
            if isinstance(state_dict.get(key), Tensor):
                mean = state_dict[key].detach().clone()
                torch.distributed.all_reduce(mean)
                state_dict[key] = mean / world_size()


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


def is_own_state(value: Any) -> bool:
    """Tell whether a value read from a checkpoint has the form that `gather` gives."""
    return isinstance(value, list) and all(isinstance(own, Mapping) and "random" in own for own in value)


@rank_zero_only
def print_once(line: str) -> None:
    """Print a line once, however many processes come by."""
    print(line, flush=True)
