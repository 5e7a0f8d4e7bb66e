"""Methods with a prepared or learning teacher go on from a checkpoint, and end where they would have ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dkel_lightning import DistillationModule
from tests.methods import family
from tests.modules.toy import train_loader, trainer, val_loader

METHODS: dict[str, dict[str, Any]] = {
    "heads": {},
    "dih": {},
    "kdpm": {"channels": ["logits", "both"]},
    "ekd": {"feature_weight": 0.1},
    "iakd": {"schedule": "review", "period": 2.0, "statistics_batches": 2},
    "consistent": {"fit_batches": 2, "refit_epochs": 2},
    "sftn": {"student": "resnet8"},
}


def build(method: str) -> DistillationModule:
    return family.build(method, teacher=None if method in ("heads", "sftn") else "resnet8", **METHODS[method])


@pytest.mark.parametrize("method", METHODS)
def test_a_resume_ends_where_an_uninterrupted_fit_does(method: str, tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    whole = build(method)
    trainer(keeper, max_epochs=3, enable_checkpointing=True).fit(whole, train_loader(), val_loader())
    rest = build(method)
    trainer(max_epochs=3).fit(rest, train_loader(), val_loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    ours, theirs = rest.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name].nan_to_num(7.0), theirs[name].nan_to_num(7.0))] == []
