"""What each process runs under a launcher's environment.

Every process fits all cases one after the other, because starting one takes longer than all of them, and writes what
it saw of each to `<folder>/<case>/rank<r>.pt` for the tests to compare.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from dkel_lightning import DistillationModule
from dkel_lightning.data import WithIndices
from tests.modules.toy import Toy, build, parameters_of, trainer, val_loader


def statistics_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: v.detach().clone() for name, v in module.named_buffers() if name.endswith(("mean", "var"))}


class Witness(Callback):
    """Note parameters, batches and statistics of this process; `hide_labels` leaves rank 1 without any label."""

    def __init__(self, hide_labels: bool = False) -> None:
        self.hide_labels = hide_labels
        self.seen: dict[str, Any] = {"images": [], "before": None}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen["images"].append(batch[0].clone())
        if self.hide_labels and trainer.global_rank == 1:
            batch[1].fill_(-1)
        if batch_idx == 0 and self.seen["before"] is None:
            self.seen["before"] = parameters_of(pl_module)
            self.seen["statistics_before"] = statistics_of(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        self.seen["gradients"] = gradients

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen["statistics_in_training"] = statistics_of(pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen["statistics_in_validation"] = statistics_of(pl_module)


def fit(module: LightningModule, folder: Path, hide_labels: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    witness = Witness(hide_labels)
    run = trainer(
        witness,
        default_root_dir=folder,
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo", find_unused_parameters=False),
        limit_train_batches=3,
    )
    run.fit(module, DataLoader(WithIndices(Toy(48)), batch_size=8, shuffle=True), val_loader(samples=20))
    run.save_checkpoint(folder / "end.ckpt")
    seen = witness.seen | {
        "after": parameters_of(module),
        "method": dict(module.method.named_buffers()) if isinstance(module, DistillationModule) else {},
        "metrics": dict(run.callback_metrics),
        "global_step": run.global_step,
        "updates": module.teacher.updates
        if isinstance(module, DistillationModule) and module.teacher is not None
        else None,
    }
    torch.save(seen, folder / f"rank{run.global_rank}.pt")


def main(folder: Path) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    # Differs between the processes, so that nothing may lean on a seed that they happen to share.
    torch.manual_seed(int(os.environ["LOCAL_RANK"]))
    for method in ("baseline", "pcl", "dkel", "dkel_released"):
        fit(build(method, teacher={"init_steps": 3, "init_lr_scale": 1.0}), folder / method)
    fit(build("dkel", teacher={"update": "gradient", "init_steps": 1}), folder / "gradient")
    for method in ("baseline", "dkel", "mean_teacher"):
        fit(build(method, 1 if method == "mean_teacher" else 2), folder / f"unlabelled_{method}", hide_labels=True)
    teacher = {"backbone": "resnet8"}
    fit(build("ekd", 1, teacher=teacher), folder / "ekd")
    fit(build({"name": "iakd", "start": 0.5, "statistics_batches": 2}, 1, teacher=teacher), folder / "iakd")
    fit(build({"name": "consistent", "fit_batches": 2}, 1, teacher=teacher), folder / "consistent")
    fit(build({"name": "soteacher", "samples": 48}, 1), folder / "soteacher")
    fit(build("online_checkpoints", 1, teacher={"backbone": "resnet8", "init_steps": 2}), folder / "online")
