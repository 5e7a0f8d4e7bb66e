"""How far the networks have learnt wrong training labels by heart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dkel_lightning.data.datamodule import ImageDataModule
from dkel_lightning.modules.interface import coordinator


class LabelNoiseFit(Callback):
    """Log after each validation what student and teacher say of training images whose label was made wrong.

    `train/noise/fit_wrong/...` is the share that they classify as the wrong label says, `train/noise/fit_true/...` as
    the true one does; `student_mean` and `teacher_mean` average over peers. Images are seen as in validation, without
    augmentation. Nothing is logged without label noise.

    Args:
        most: Images at most, evenly spread over the training set.
    """

    def __init__(self, most: int = 2048) -> None:
        self.most = most

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Classify the images and log the shares."""
        data = getattr(trainer, "datamodule", None)
        if trainer.sanity_checking or not isinstance(data, ImageDataModule):
            return
        module = coordinator(pl_module)
        hits, samples = torch.zeros(2, len(module.members), device=module.device), 0
        with trainer.precision_plugin.val_step_context():
            for images, wrong, true in data.wrongly_labelled(self.most):
                predicted = module.member_logits(images.to(module.device)).argmax(-1)
                targets = torch.stack([wrong, true]).to(predicted.device)
                hits += (predicted == targets[:, None]).sum(-1)
                samples += len(wrong)
        if samples:
            module.log_dict(_by_network(module.members, hits / samples))


def _by_network(members: Sequence[str], shares: Tensor) -> dict[str, Tensor]:
    """Average shares `[2, N]` of the wrong and the true labels over the peers of each network."""
    logs: dict[str, Tensor] = {}
    for network in ("student", "teacher"):
        peers = [i for i, name in enumerate(members) if name.removeprefix(f"{network}_").isdigit()]
        if peers:
            wrong, true = shares[:, peers].mean(-1)
            logs |= {f"train/noise/fit_wrong/{network}_mean": wrong, f"train/noise/fit_true/{network}_mean": true}
    return logs
