"""Measure how hard labels and teacher predictions are for the student's kernel, after each epoch.

    python examples/supervision_complexity.py

This trains a small student together with a larger teacher (`online_checkpoints`) on scikit-learn's digits, and prints
the supervision complexity of both targets before training and after each epoch.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.datasets import load_digits
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import DistillationModule
from dkel_lightning.studies.complexity import centred, gradient_kernel, supervision_complexity

CLASSES = 10


class Complexity(Callback):
    """Measure on fixed images [n, C, H, W] with labels [n]; `rows` holds (epoch, labels, teacher)."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels
        self.rows: list[tuple[int, float, float]] = []

    def measure(self, module: LightningModule, epoch: int) -> None:
        """Append a row and print it."""
        assert isinstance(module, DistillationModule)
        kernel = gradient_kernel(module.deploy("student"), self.images, CLASSES)
        with torch.no_grad():
            teacher = module.deploy("teacher").eval()(self.images).softmax(-1)
        targets = centred(one_hot(self.labels, CLASSES)), centred(teacher)
        labels, taught = (supervision_complexity(kernel, target) for target in targets)
        self.rows.append((epoch, labels, taught))
        print(f"epoch {epoch}: labels {labels:.3g}, teacher {taught:.3g}", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the untrained student."""
        self.measure(pl_module, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure after the epoch."""
        self.measure(pl_module, trainer.current_epoch + 1)


def main(epochs: int = 10, images: int = 64, **settings: Any) -> list[tuple[int, float, float]]:
    """Train and return the rows."""
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target))
    module = DistillationModule.build(
        "resnet8", CLASSES, "online_checkpoints", in_channels=1, teacher={"backbone": "resnet20"}, schedules="shares"
    )
    watch = Complexity(*data[:images])
    trainer = Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[watch], logger=False, **settings)
    trainer.fit(module, DataLoader(data, 64, shuffle=True, drop_last=True))
    return watch.rows


if __name__ == "__main__":
    main()
