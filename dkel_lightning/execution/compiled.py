"""The networks' forward passes by torch.compile, held outside of the networks."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.modules.peers import PeersModule


class CompiledNetworks:
    """The forward passes of student and teacher, compiled for batches of so many samples.

    Held outside of the networks, whose names, copies and files stay what they are.
    """

    def __init__(self, module: Coordinator, rows: int) -> None:
        self.rows = rows
        parts: list[PeersModule | None] = [module.student, module.teacher, module.extra]
        self._parts = [(part, part.kind, _compiled(part.network, part.kind)) for part in parts if part is not None]

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Let student and teacher use them."""
        for part, kind, call in self._parts:
            part.compiled[kind] = call
        try:
            yield
        finally:
            for part, _, _ in self._parts:
                part.compiled.clear()


def _compiled(network: nn.Module, kind: str) -> Callable[[Tensor], Any]:
    def call(views: Tensor) -> Any:
        return getattr(network, kind)(views)

    # Dynamo keeps what it has compiled by code object, and only so many: each network gets its own.
    own = types.FunctionType(call.__code__.replace(), call.__globals__, kind, None, call.__closure__)
    compiled: Callable[[Tensor], Any] = torch.compile(own, dynamic=False, fullgraph=True)
    return compiled
