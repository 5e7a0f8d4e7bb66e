"""How many wrong training labels the networks have memorised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer

from dkel_lightning.data.datamodule import ImageDataModule

if TYPE_CHECKING:
    from dkel_lightning.distillation import DistillationModule


class LabelNoiseFit(Callback):
    """Log after each validation what student and teacher predict for training images with a wrong label.

    `train/noise/fit_wrong/...` is the share classified as the wrong label, `train/noise/fit_true/...` as the true one;
    `student_mean` and `teacher_mean` average over peers. Images are seen as in validation, without
    augmentation. Nothing is logged without label noise.

    Args:
        most: Images at most, evenly spread over the training set.
    """

    def __init__(self, most: int = 2048) -> None:
        self.most = most

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        data = getattr(trainer, "datamodule", None)
        if trainer.sanity_checking or not isinstance(data, ImageDataModule):
            return
        module: DistillationModule = pl_module
        hits, samples = torch.zeros(2, len(module.scores.members), device=module.device), 0
        with trainer.precision_plugin.val_step_context():
            for images, wrong, true in data.wrongly_labelled(self.most):
                images = trainer.precision_plugin.convert_input(images.to(module.device))
                predicted = module.evaluate(images).logits.argmax(-1)
                targets = torch.stack([wrong, true]).to(predicted.device)
                hits += (predicted == targets[:, None]).sum(-1)
                samples += len(wrong)
        if samples:
            for network, shares in module.scores.means_of_peers((hits / samples).T).items():
                for kind, share in zip(("wrong", "true"), shares, strict=True):
                    pl_module.log(f"train/noise/fit_{kind}/{network}_mean", share)
