"""Every method: a run with one command, a resume, and trainable parts that learn and are drawn from the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dkel_lightning import DistillationModule
from dkel_lightning.checkpoints.file_format import load
from tests.methods import family
from tests.methods.family import trained_and_deployed
from tests.modules import toy
from tests.modules.toy import images_and_labels, parameters_of, same, state_of, train_loader, trainer, val_loader

SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=2")
RUNS: dict[str, tuple[str, ...]] = {
    "cl_ilr": (),
    "kdcl": ("method.peers=2",),
    "okddip": (),
    "kdpm": SHORT,
    "ekd": SHORT,
    "iakd": (*SHORT, "method.statistics_batches=2"),
    "consistent": (*SHORT, "method.fit_batches=2"),
    "sftn": SHORT,
    "soteacher": SHORT,
    "heads": SHORT,
}


@pytest.mark.parametrize("method", RUNS)
def test_a_run_with_one_command_deploys_a_plain_student(method: str, tmp_path: Path) -> None:
    result, module, network = trained_and_deployed(tmp_path, f"method={method}", *RUNS[method])
    assert result.last.deployed == ("student_3" if method == "okddip" else module.deployed_member())
    assert result.last.deployed.startswith("student_")
    assert (tmp_path / "teacher").is_dir() == (method in ("iakd", "consistent"))
    assert not any(hasattr(part, "gradient_scale") or "forward" in vars(part) for part in network.modules())


@pytest.mark.parametrize("method", ["one", "ffl"])
def test_an_ensemble_of_its_own_is_in_the_checkpoint_and_deployed_on_request(method: str, tmp_path: Path) -> None:
    result, module, network = trained_and_deployed(tmp_path, f"method={method}")
    assert result.last.deployed == ("student_0" if method == "one" else module.deployed_member())
    assert "ensemble" in result.last.accuracy
    part = {"one": "gate", "ffl": "fusion"}[method]
    state = load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    assert any(name.startswith(f"method.{part}.") for name in state)
    assert not any(part in name for name in network.state_dict())
    images = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(module.deploy("ensemble")(images), module(images).ensemble_logits)


SETTINGS: dict[str, dict[str, Any]] = {
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
    "dkel": {"labels": {0: 1.0, 0.4: 0.5, 0.7: 0.0}},
    "pcl": {"targets": {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "class_weights": [1, 2, 3]}},
}


def build(method: str) -> DistillationModule:
    alone = ("one", "okddip", "ffl", "heads", "sftn", "dkel", "pcl")
    return family.build(method, teacher=None if method in alone else "resnet8", **SETTINGS[method])


@pytest.mark.parametrize("method", SETTINGS)
def test_a_resume_ends_where_an_uninterrupted_fit_does(method: str, tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    whole, rest = build(method), build(method)
    straight, resumed = trainer(keeper, max_epochs=3, enable_checkpointing=True), trainer(max_epochs=3)
    straight.fit(whole, train_loader(), val_loader())
    resumed.fit(rest, train_loader(), val_loader(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert same(state_of(rest, resumed), state_of(whole, straight))
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "epoch=2.ckpt")
    assert same(loaded.state_dict(), whole.state_dict())
    assert loaded.targets.settings == whole.targets.settings


PEERS = {"one": 3, "okddip": 4, "ffl": 2}


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("more", [0, 1])
def test_every_parameter_learns_in_every_step_so_that_plain_ddp_works(method: str, more: int) -> None:
    module = toy.build(method, peers=PEERS[method] + more)
    module.training_step(images_and_labels(6), 0).backward()
    without = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert without == []
    assert len(list(module.method.parameters())) > 0


@pytest.mark.parametrize("method", PEERS)
def test_parts_are_drawn_from_the_seed_and_are_a_group_of_the_optimizer(method: str) -> None:
    first, again, other = (parameters_of(toy.build(method, PEERS[method], seed=seed).method) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)
    module, fit = toy.build(method, PEERS[method]), trainer(limit_train_batches=1)
    fit.fit(module, train_loader())
    groups = {group["name"]: group["params"] for group in fit.optimizers[0].param_groups}
    assert {id(parameter) for parameter in groups["method"]} == {id(p) for p in module.method.parameters()}
