"""Use data, methods, teachers, resume and a comparison from Python, without Hydra.

    python examples/without_hydra.py

This trains DKEL, PCL and a baseline of the same networks on scikit-learn's digits, interrupts and resumes the first of
them, and prints one line per method. It takes about two minutes on a CPU.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dkel_lightning import DistillationModule
from dkel_lightning.data import DigitsDataModule


def build(method: str, epochs: int) -> DistillationModule:
    """Build the module of a method."""
    settings = {
        "dkel": {"name": "dkel", "temperature": 3.0, "rampup": {"scale": 1.0}, "ensemble": {"space": "logits"}},
        "pcl": "pcl",
        "baseline": "baseline",
    }
    return DistillationModule.build(
        "resnet8",
        num_classes=10,
        method=settings[method],
        peers=3,
        in_channels=1,
        schedules="shares",
        teacher={"draw": "independent", "init_steps": 2} if method == "dkel" else None,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        scheduler=partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[epochs // 2, epochs * 3 // 4]),
        deploy={"network": "student"},  # the same member for all three methods
        seed=0,
    )


class Interruption(Callback):
    """Stop the run after its first epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        trainer.should_stop = True


def trainer(epochs: int, folder: Path, more: Sequence[Callback] = ()) -> tuple[Trainer, ModelCheckpoint]:
    """Create a Trainer that keeps the best and the last checkpoint."""
    best = ModelCheckpoint(folder, monitor="val/acc", mode="max", save_last=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(max_epochs=epochs, callbacks=[best, *more], **quiet), best


def main(epochs: int = 12, folder: str = "outputs/examples", images: int | None = None) -> dict[str, float]:
    """Train each method; return its test accuracy at the epoch selected by validation. `images` limits the data."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*num_workers.*|.*does not have many workers.*|.*Checkpoint directory.*")
    accuracy = {}
    for method in ("dkel", "pcl", "baseline"):
        place = Path(folder, "without_hydra", method)
        datamodule = DigitsDataModule(batch_size=16, views=3, seed=0, limit=images)
        fit, best = trainer(epochs, place)
        if method == "dkel":
            # Resume from its checkpoint with new objects, as after a crash: data order, augmentation, schedules and the
            # teacher continue where they stopped.
            interrupted, _ = trainer(epochs, place, more=[Interruption()])
            interrupted.fit(build(method, epochs), datamodule)
            datamodule = DigitsDataModule(batch_size=16, views=3, seed=0, limit=images)
        module = build(method, epochs)
        fit.fit(module, datamodule, ckpt_path=str(place / "last.ckpt") if method == "dkel" else None)
        (results,) = fit.test(module, datamodule, ckpt_path=best.best_model_path, verbose=False)
        accuracy[method] = results["test/acc"]
        print(f"{method:9s} {results['test/acc']:.2%} ({module.deployed_member()} of {best.best_model_path})")
    print("hydra was imported:", "hydra" in sys.modules)
    return accuracy


if __name__ == "__main__":
    main()
