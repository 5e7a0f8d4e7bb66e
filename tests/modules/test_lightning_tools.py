"""Lightning's own tools on a module of ours: the finder of learning rates, fine-tuning, averages of weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.tuner.tuning import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dkel_lightning import DistillationModule
from dkel_lightning.errors import ConfigError
from dkel_lightning.modules import checkpoint_state
from tests.modules.test_drop_in import Net, build, trainer
from tests.modules.toy import parameters_of, same


def loader(count: int = 16, channels: int = 3, batch_size: int = 8) -> DataLoader[Any]:
    drawn = torch.Generator().manual_seed(count)
    data = torch.randn(count, channels, 8, 8, generator=drawn)
    return DataLoader(TensorDataset(data, torch.arange(count) % 10), batch_size)


# ---------------------------------------------------------------------- the finder of learning rates


@pytest.mark.parametrize("method", ["dkel", "baseline"])
def test_the_rate_that_lightning_finds_is_the_one_that_is_trained_with(method: str, tmp_path: Path) -> None:
    module = build(method=method)
    before = parameters_of(module)
    fit = trainer(tmp_path, max_epochs=1)
    finder = Tuner(fit).lr_find(module, loader(64, batch_size=4), num_training=16, min_lr=1e-4)
    assert len(finder.results["loss"]) == 16
    assert module.lr == finder.suggestion()
    assert same(before, parameters_of(module))  # the search leaves no trace
    fit.fit(module, loader(), loader())
    assert {group["initial_lr"] for group in fit.optimizers[0].param_groups} == {module.lr}


# ---------------------------------------------------------------------- fine-tuning


class Rows(nn.Module):
    """A weight of its own is read before the split, as a ViT's embedding of positions is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 3, 1, 1), 0.5))
        self.net = Net()

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.net(given * self.scale)


@pytest.mark.parametrize(
    ("backbone", "split_at", "trunk", "optimizer"),
    [
        (Net(), "body", {"stem.weight", "stem.bias"}, None),  # AdamW and WarmupCosine
        (
            Rows(),
            "net.body",
            {"scale", "net.stem.weight", "net.stem.bias"},
            partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        ),
    ],
)
def test_the_trunk_stands_still_until_it_is_unfrozen_and_a_resume_goes_on_so(
    backbone: nn.Module, split_at: str, trunk: set[str], optimizer: Any, tmp_path: Path
) -> None:
    def fine_tuned(name: str, epochs: int, path: Path | None = None) -> DistillationModule:
        module = build(backbone, split_at, optimizer=optimizer)
        tuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_ratio_lr=0.5)
        saved = ModelCheckpoint(tmp_path / name, "{epoch}", save_top_k=-1)
        trainer(tmp_path, tuning, saved, max_epochs=epochs).fit(module, loader(), ckpt_path=path, weights_only=True)
        return module

    drawn = build(backbone, split_at).student.peer(0).state_dict()
    still = fine_tuned("still", 1)
    kept = {name for name, value in still.student.peer(0).state_dict().items() if torch.equal(value, drawn[name])}
    # A bias before a BatchNorm moves by rounding alone, or not at all.
    assert {name for name in kept if not name.endswith("body.0.bias")} == trunk
    through = fine_tuned("through", 3)
    moved = through.student.peer(0).state_dict()
    assert not any(torch.equal(moved[name], drawn[name]) for name in trunk if not name.endswith("bias"))
    resumed = fine_tuned("resumed", 3, tmp_path / "through" / "epoch=1.ckpt")
    assert same(parameters_of(through), parameters_of(resumed))


def test_fine_tuning_on_several_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_state, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"BackboneFinetuning unfreezes weights later.*train on one device"):
        trainer(tmp_path, BackboneFinetuning(1)).fit(build(), loader())


def test_an_average_of_scores_and_counters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"EMAWeightAveraging averages scores.*teacher='follow'"):
        trainer(tmp_path, EMAWeightAveraging()).fit(build(), loader())
