"""Add online distillation to an existing Lightning project with a torchvision model.

    python examples/torchvision_model.py

This trains a ResNet-18 on scikit-learn's digits; its `layer4` and classifier become three peers. It prints the test
accuracy of every network and of the deployed one, in a few minutes on a CPU. Only the six marked lines are new.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchvision.models import resnet18
from torchvision.transforms.v2.functional import resize

from dkel_lightning import DistillationModule  # <- 1


class Digits(LightningDataModule):
    """Batches are tuples (images [B, 3, 32, 32], labels [B]) with one view per image."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Split the images into training, validation and test."""
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        data = TensorDataset(resize(images, [32, 32]).repeat(1, 3, 1, 1), torch.tensor(digits.target))
        sizes = (1257, 180, 360)
        self.train, self.val, self.test = random_split(data, sizes, torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        """Shuffle, and drop an incomplete last batch."""
        return DataLoader(self.train, batch_size=self.hparams["batch_size"], shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Keep the order."""
        return DataLoader(self.val, batch_size=256)

    def test_dataloader(self) -> DataLoader:
        """Keep the order."""
        return DataLoader(self.test, batch_size=256)


def main(epochs: int = 12, folder: str = "outputs/examples", **settings: Any) -> float:
    """Train, test the best epoch, return the accuracy of the deployed network. `settings` go to the Trainer."""
    seed_everything(0)
    datamodule = Digits()
    module = DistillationModule.build(  # <- 2
        backbone=resnet18(num_classes=10),  # <- 3
        split_at="layer4",  # <- 4
        num_classes=10,
        schedules="shares",  # <- 5: scaled to the run; by default those of the 300-epoch CIFAR protocol
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4),
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
    )
    best = ModelCheckpoint(monitor="val/acc", mode="max", save_last=True)
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[best, EarlyStopping("val/acc", mode="max", patience=5), LearningRateMonitor("epoch")],
        logger=CSVLogger(folder, name="torchvision"),
        log_every_n_steps=10,
        **settings,
    )
    trainer.fit(module, datamodule)
    trainer.test(module, datamodule, ckpt_path="best")

    network = module.deploy()  # <- 6: one peer, a plain nn.Module
    images, labels = next(iter(datamodule.test_dataloader()))
    with torch.no_grad():
        accuracy = (network(images).argmax(1) == labels).float().mean().item()
    deployed = module.deployed_member()
    print(f"deployed: {deployed}, {accuracy:.1%} of {len(labels)} test images; checkpoint {best.best_model_path}")
    return accuracy


if __name__ == "__main__":
    main()
