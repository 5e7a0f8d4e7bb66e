"""Stop at the first sign of a loss that is no number, before a checkpoint can hold it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dkel_lightning.errors import NonFiniteError

CURE = (
    "Lower the learning rate, clip gradients (trainer.gradient_clip_val=1), or use precision=bf16 or fp32. "
    "The last checkpoint is untouched."
)


class FiniteGuard(Callback):
    """Raise when the training loss is NaN or infinite.

    The verdict stays on the device and is read every `every_n_steps` and at the end of each epoch, before anything
    is saved; on the CPU, where reading is free, after every step.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._bad: Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take note of the loss of this batch."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        bad = ~torch.isfinite(loss.detach()).all()
        self._bad = bad if self._bad is None else self._bad | bad
        if loss.device.type == "cpu" or (batch_idx + 1) % self.every_n_steps == 0:
            self._read(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the verdict before the epoch's checkpoint is written, and look at the weights themselves.

        The last step of an epoch may spoil the weights after a loss that was still finite.
        """
        self._read(trainer, pl_module)
        norms = torch._foreach_norm([parameter.detach() for parameter in pl_module.parameters()])
        if not bool(torch.stack([norm.float() for norm in norms]).isfinite().all()):
            names = [name for name, value in pl_module.named_parameters() if not bool(value.isfinite().all())]
            if names:
                raise NonFiniteError(
                    f"{len(names)} weights became NaN or infinite in epoch {trainer.current_epoch} "
                    f"({', '.join(names[:3])}). {CURE}"
                )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the verdict before a checkpoint can be written after validation."""
        self._read(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the verdict before a checkpoint is written in the middle of an epoch."""
        self._read(trainer, pl_module)

    def _read(self, trainer: Trainer, module: LightningModule) -> None:
        if self._bad is None:
            return
        bad, self._bad = bool(self._bad), None
        if bad:
            raise NonFiniteError(
                f"The training loss became NaN or infinite by step {trainer.global_step} "
                f"(epoch {trainer.current_epoch}){self._culprits(module)}. {CURE}"
            )

    @staticmethod
    def _culprits(module: LightningModule) -> str:
        means = getattr(module, "term_means", None)
        if means is None:
            return ""
        names = [name for name, total in zip(means.names, means.sums, strict=True) if not torch.isfinite(total)]
        return f"; non-finite terms: {', '.join(names)}" if names else ""
