"""How the networks are executed: as ordinary PyTorch, or through `torch.compile`."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dkel_lightning.modules.peers import PeersModule
from dkel_lightning.settings.execution import Execution

MODES = {"compile": None, "reduce_overhead": "reduce-overhead"}
"""The mode of `torch.compile`; `reduce_overhead` replays CUDA graphs on a CUDA device."""


def compile_networks(parts: Iterable[PeersModule], execution: Execution) -> None:
    """Compile the forward pass of each network, unless execution is eager.

    Shapes are static, so a resumed run uses the same kernels as an uninterrupted one. Only `part.compiled` changes;
    names in the state_dict stay.
    """
    for part in parts if execution.name in MODES else ():
        part.compiled = torch.compile(_with_own_code(part.network), mode=MODES[execution.name], dynamic=False)


def begin_step(execution: Execution) -> None:
    """Mark the start of a step, whose CUDA graphs reuse the memory of the last."""
    if execution.name == "reduce_overhead":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def _with_own_code(run: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Wrap `run` in a function with a new code object, because TorchDynamo limits recompilations per code object."""

    def call(views: Tensor) -> Any:
        return run(views)

    return types.FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
