"""Methods with trainable parts of their own: the parts learn, survive checkpoint and resume, and are not deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dkel_lightning import DistillationModule
from tests.modules.toy import build, images_and_labels, parameters_of, same, state_of, train_loader, trainer, val_loader

PEERS = {"one": 3, "okddip": 4, "ffl": 2}
METHODS = list(PEERS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("more", [0, 1])
def test_every_parameter_learns_in_every_step_so_that_plain_ddp_works(method: str, more: int) -> None:
    module = build(method, peers=PEERS[method] + more)
    module.training_step(images_and_labels(6), 0).backward()
    without = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert without == []
    assert len(list(module.method.parameters())) > 0


@pytest.mark.parametrize("method", METHODS)
def test_parts_are_drawn_from_the_seed_and_are_a_group_of_the_optimizer(method: str) -> None:
    first, again, other = (parameters_of(build(method, PEERS[method], seed=seed).method) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)
    module, fit = build(method, PEERS[method]), trainer(limit_train_batches=1)
    fit.fit(module, train_loader())
    groups = {group["name"]: group["params"] for group in fit.optimizers[0].param_groups}
    assert {id(parameter) for parameter in groups["method"]} == {id(p) for p in module.method.parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one_and_its_checkpoint_the_module(method: str, tmp_path: Path) -> None:
    fits: dict[str, Any] = {"max_epochs": 3, "enable_checkpointing": True}
    straight = build(method, PEERS[method])
    whole = trainer(ModelCheckpoint(tmp_path / "whole", save_last=True), **fits)
    whole.fit(straight, train_loader(), val_loader())

    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    stopped = trainer(ModelCheckpoint(tmp_path / "part", save_last=True), Stop(), **fits)
    with pytest.raises(SystemExit):
        stopped.fit(build(method, PEERS[method]), train_loader(), val_loader())
    resumed, rest = build(method, PEERS[method], seed=0), trainer(**(fits | {"enable_checkpointing": False}))
    rest.fit(resumed, train_loader(), val_loader(), ckpt_path=tmp_path / "part" / "last.ckpt", weights_only=True)
    assert same(state_of(resumed, rest), state_of(straight, whole))

    loaded = DistillationModule.load_from_checkpoint(tmp_path / "whole" / "last.ckpt")
    assert same(loaded.state_dict(), straight.state_dict())
    images, _ = images_and_labels(6, seed=5)
    assert torch.equal(loaded.eval().member_logits(images), straight.eval().member_logits(images))


@pytest.mark.parametrize("method", METHODS)
def test_a_deployed_peer_holds_nothing_of_the_method(method: str) -> None:
    module = build(method, PEERS[method])
    peer = module.student.network.peer(0).state_dict()
    assert module.deploy().state_dict().keys() == peer.keys()
