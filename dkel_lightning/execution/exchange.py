"""What DistributedDataParallel does in a step, done around it: no replay calls the hooks by which it averages."""

from __future__ import annotations

import gc

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dkel_lightning.modules.interface import Coordinator
from dkel_lightning.runtime.processes import average_over_processes

BUCKET = 250 * 2**20
"""Bytes of buffers that travel together, as DistributedDataParallel's."""
PLAIN = ("broadcast_buffers", "bucket_cap_mb", "gradient_as_bucket_view", "static_graph")
"""Its settings that an exchange after the backward pass meets, or need not know."""


def of_plain_kind(model: nn.Module, settings: dict[str, object]) -> str | None:
    """Say what of DistributedDataParallel's settings, or of the model, asks for more than an `Exchange` does."""
    asked = [name for name, value in settings.items() if value and name not in PLAIN]
    if asked:
        return f"{asked[0]} is DistributedDataParallel's own"
    if any(isinstance(part, nn.SyncBatchNorm) for part in model.modules()):
        return "SyncBatchNorm exchanges statistics during the forward pass"
    return None


class Exchange:
    """Averages gradients after the backward pass, in one piece a type, and hands the first process's buffers round.

    Takes the place of the DistributedDataParallel around `module`, whose parameters it finds equal. Each process may
    replay, or make its step eagerly: they exchange the same.
    """

    def __init__(self, module: Coordinator, trainer: Trainer) -> None:
        self._module = module
        self._trainer = trainer
        wrapper = trainer.strategy.model
        assert isinstance(wrapper, DistributedDataParallel)
        self._broadcasts = bool(wrapper.broadcast_buffers)
        self._ignored = frozenset(wrapper.parameters_to_ignore)
        self._due = True
        trainer.strategy.model = module
        # It lies in a circle of references; its hooks, and the stream that they were made on, go with it.
        del wrapper
        gc.collect()

    def before_forward(self) -> None:
        """Give all processes the first one's buffers, unless gradients were only accumulated in the step before."""
        if self._broadcasts and self._due:
            buffers = [value for name, value in self._module.named_buffers() if name not in self._ignored]
            group = torch.distributed.distributed_c10d._get_default_group()
            torch.distributed._broadcast_coalesced(group, buffers, BUCKET, 0)  # type: ignore[attr-defined]

    @torch.no_grad()
    def after_backward(self) -> None:
        """Average the gradients over the processes, where an optimizer step follows."""
        self._due = not self._trainer.fit_loop._should_accumulate()
        if not self._due:
            return
        gradients = [each.grad for each in self._module.parameters() if each.grad is not None]
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            of_type = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.reshape(-1) for gradient in of_type])
            average_over_processes([flat])
            parts = torch.split(flat, [gradient.numel() for gradient in of_type])
            averaged = [part.view(each.shape) for part, each in zip(parts, of_type, strict=True)]
            torch._foreach_copy_(of_type, averaged)
