"""Student, teacher and ensemble, each fitted on its own in a plain Trainer."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import EnsembleModule, StudentModule, TeacherModule, TeacherSettings
from dkel_lightning.errors import DataError
from tests.modules.toy import CLASSES, SGD, peers_network, train_loader, trainer, val_loader


class EpochLosses(Callback):
    """Keep the mean training loss of every epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("update", ["ema", "gradient", "frozen"])
def test_a_teacher_learns_alone_whatever_its_update(update: str) -> None:
    losses = EpochLosses()
    teacher = TeacherModule(peers_network(), TeacherSettings(update=update), optimizer=SGD)
    fit = trainer(losses, max_epochs=6)
    fit.fit(teacher, train_loader(), val_loader())
    assert losses.losses[-1] < 0.5 * losses.losses[0]
    assert float(fit.callback_metrics["val/acc"]) > 0.6
    assert losses.losses[0] < 2 * 1.1  # a mean over the peers, not their sum: about log 3 at the start


def test_a_student_learns_alone_and_logs_each_peer() -> None:
    losses = EpochLosses()
    student, fit = StudentModule(peers_network(peers=3), optimizer=SGD), trainer(losses, max_epochs=6)
    fit.fit(student, train_loader(), val_loader())
    assert losses.losses[-1] < 0.5 * losses.losses[0]
    names = {"train/loss", "val/acc", "val/acc/peer_0", "val/acc/peer_1", "val/acc/peer_2"}
    assert set(fit.callback_metrics) == names
    mean = sum(float(fit.callback_metrics[f"val/acc/peer_{i}"]) for i in range(3)) / 3
    assert float(fit.callback_metrics["val/acc"]) == pytest.approx(mean, rel=1e-6)
    tested = trainer().test(student, val_loader(), verbose=False)[0]
    assert tested["test/acc"] == pytest.approx(mean, rel=1e-6)


def feature_loader() -> DataLoader[Any]:
    labels = torch.arange(30) % CLASSES
    features = F.one_hot(labels, CLASSES).float().unsqueeze(1).repeat(1, 2, 1)
    noise = 0.1 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(features + noise, labels), batch_size=10)


def test_an_ensemble_learns_alone_from_given_features() -> None:
    losses = EpochLosses()
    ensemble = EnsembleModule([CLASSES, CLASSES], CLASSES, optimizer=partial(torch.optim.SGD, lr=1.0))
    fit = trainer(losses, max_epochs=20)
    fit.fit(ensemble, feature_loader(), feature_loader())
    assert losses.losses[-1] < 0.3 * losses.losses[0]
    assert float(fit.callback_metrics["val/acc"]) == 1.0


@pytest.mark.parametrize("module", [StudentModule, TeacherModule])
def test_alone_too_a_label_out_of_range_is_named(module: Any) -> None:
    with pytest.raises(DataError, match="Label 5 lies outside the 3 classes"):
        module(peers_network()).training_step((torch.zeros(2, 3, 8, 8), torch.tensor([5, 0])), 0)
