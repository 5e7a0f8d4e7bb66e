"""How hard labels and teachers are for the student, as its kernel sees them while it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dkel_lightning.modules.deployment import deploy
from dkel_lightning.modules.interface import Coordinator, coordinator
from dkel_lightning.runtime.seeding import generator
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.studies.complexity import RIDGE, centred, gradient_kernel, supervision_complexity


class SupervisionComplexity(Callback):
    """Log the supervision complexity of fixed images' targets under the kernel of the student's first peer.

    `complexity/random` is that of the labels shuffled, `complexity/labels` of the labels, and where there is a teacher
    `complexity/online` that of what its first peer predicts at the same moment. `rows` gives all of them with that of
    the last teacher, `offline`, which is known only in the end; for it the kernels are kept in memory and checkpoints,
    8 n^2 bytes each.

    Args:
        images: [n, C, H, W], as the networks see them; float. No two alike.
        labels: [n].
        every_n_epochs: epochs between two looks; the first is before the training.
        ridge: see `supervision_complexity`.
        seed: from which the random labels are drawn.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, every_n_epochs: int = 1, ridge: float = RIDGE, seed: int = 0
    ) -> None:
        self.images, self.labels = images, labels
        self.every_n_epochs, self.ridge, self.seed = every_n_epochs, ridge, seed
        self.epochs: list[int] = []
        self.kernels: list[Tensor] = []
        self.taught: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the student as it was drawn; on a resume it was looked at."""
        if trainer.global_step == 0:
            self._look(coordinator(pl_module), 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and log what is known."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            module = coordinator(pl_module)
            self._look(module, epoch)
            found = self._row(-1, module.student.num_classes)
            module.log_dict({f"complexity/{name}": value for name, value in found.items()})

    def rows(self, classes: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield each epoch that was looked at with the complexity of all targets."""
        for index, epoch in enumerate(self.epochs):
            offline = {}
            if self.taught:
                offline = {"offline": supervision_complexity(self.kernels[index], self.taught[-1], self.ridge)}
            yield epoch, {**self._row(index, classes), **offline}

    def _look(self, module: Coordinator, epoch: int) -> None:
        images = self.images.cpu()
        student = deploy(module, Deploy("student", 0))
        # Float64, which not every accelerator has.
        device = module.device if module.device.type in ("cpu", "cuda") else torch.device("cpu")
        kernel = gradient_kernel(student.to(device), images.to(device), module.student.num_classes)
        self.kernels.append(kernel.cpu())
        if module.teacher is not None:
            with torch.no_grad():
                logits = deploy(module, Deploy("teacher", 0))(images.float())
            self.taught.append(centred(logits.double().softmax(-1)))
        self.epochs.append(epoch)

    def _row(self, index: int, classes: int) -> dict[str, float]:
        labels = self.labels.cpu()
        draws = generator(self.seed, "random labels")
        targets = {
            "random": centred(F.one_hot(labels[torch.randperm(len(labels), generator=draws)], classes)),
            "labels": centred(F.one_hot(labels, classes)),
        }
        if self.taught:
            targets["online"] = self.taught[index]
        return {name: supervision_complexity(self.kernels[index], each, self.ridge) for name, each in targets.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what was looked at."""
        return {"epochs": list(self.epochs), "kernels": list(self.kernels), "taught": list(self.taught)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.epochs, self.kernels, self.taught = (list(state_dict[key]) for key in ("epochs", "kernels", "taught"))
