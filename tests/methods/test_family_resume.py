"""Methods with parts or a teacher of their own go on from a checkpoint, and end where they would have ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from dkel_lightning import DistillationModule
from tests.methods import family
from tests.modules.toy import same, state_of, train_loader, trainer, val_loader

METHODS: dict[str, dict[str, Any]] = {
    "one": {"peers": 3},
    "okddip": {"peers": 4},
    "ffl": {"peers": 2},
    "heads": {},
    "dih": {},
    "kdpm": {"channels": ["logits", "both"]},
    "ekd": {"feature_weight": 0.1},
    "iakd": {"schedule": "review", "period": 2.0, "statistics_batches": 2},
    "consistent": {"fit_batches": 2, "refit_epochs": 2},
    "sftn": {"student": "resnet8"},
}


def build(method: str) -> DistillationModule:
    alone = ("one", "okddip", "ffl", "heads", "sftn")
    return family.build(method, teacher=None if method in alone else "resnet8", **METHODS[method])


@pytest.mark.parametrize("method", METHODS)
def test_a_resume_ends_where_an_uninterrupted_fit_does(method: str, tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    whole, rest = build(method), build(method)
    straight, resumed = trainer(keeper, max_epochs=3, enable_checkpointing=True), trainer(max_epochs=3)
    straight.fit(whole, train_loader(), val_loader())
    resumed.fit(rest, train_loader(), val_loader(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert same(state_of(rest, resumed), state_of(whole, straight))
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "epoch=2.ckpt")
    assert same(loaded.state_dict(), whole.state_dict())
