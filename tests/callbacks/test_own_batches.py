"""Whether a validation follows a batch is known before it begins."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from dkel_lightning.callbacks.own_batches import validates_after
from tests.modules.toy import Stream, build, train_loader, trainer, val_loader


class Watch(Callback):
    def __init__(self) -> None:
        self.predicted: list[bool] = []
        self.validated_after: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.predicted.append(validates_after(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.validated_after.append(len(self.predicted) - 1)


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        ({}, [2, 5]),
        ({"val_check_interval": 2}, [1, 4]),
        ({"check_val_every_n_epoch": 2}, [5]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 4}, [3]),  # counted over epochs
        ({"limit_val_batches": 0}, []),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_validation_is_foreseen_however_its_batches_are_counted(
    settings: dict[str, Any], after: list[int], stream: bool
) -> None:
    watch = Watch()
    data = DataLoader(Stream(), batch_size=8) if stream else train_loader()
    module = build("baseline", 1, teacher={"update": "none"})
    trainer(watch, max_epochs=2, **settings).fit(module, data, val_loader(5))
    assert watch.validated_after == after
    assert watch.predicted == [step in after for step in range(6)]
