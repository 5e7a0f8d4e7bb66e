"""Peers that differ: learning rates of their own and frozen ones, by exact updates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

from dkel_lightning import DistillationModule, StudentModule
from dkel_lightning.callbacks import TeacherInitialisation
from dkel_lightning.errors import ConfigError
from tests.modules.toy import parameters_of, peers_network, same, train_loader, trainer

PLAIN = partial(torch.optim.SGD, lr=0.5)
SEPARATE = ["resnet8", "resnet8"]


def build(method: str = "baseline", peers: Any = 2, **settings: Any) -> DistillationModule:
    settings.setdefault("optimizer", PLAIN)
    return DistillationModule.build("resnet8", 3, method, peers, **settings)


def one_step(module: DistillationModule, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the student's parameters before and after a single optimizer step."""
    before = parameters_of(module.student.network)
    trainer(max_steps=1, **settings).fit(module, train_loader())
    return before, parameters_of(module.student.network)


@pytest.mark.parametrize("peers", [2, SEPARATE])
def test_a_step_of_plain_sgd_is_scaled_by_the_factor_of_its_peer_and_only_there(peers: Any) -> None:
    before, even = one_step(build(peers=peers))
    _, scaled = one_step(build(peers=peers, peer_lr_scale=[1.0, 0.25]))
    part = "branches.1." if isinstance(peers, int) else "peers.1."
    assert any(name.startswith(part) for name in before)
    for name, start in before.items():
        factor = 0.25 if name.startswith(part) else 1.0
        torch.testing.assert_close(scaled[name] - start, factor * (even[name] - start), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("peers", [2, SEPARATE])
def test_groups_are_named_by_peer_and_hold_every_parameter_once(peers: Any) -> None:
    module = build(peers=peers, peer_lr_scale=[1.0, 0.1])
    optimizer: Any = module.configure_optimizers()
    names = [group["name"] for group in optimizer.param_groups]
    trunk = ["student"] if isinstance(peers, int) else []
    assert names == [*trunk, "ensemble", "student/peer_0", "student/peer_1"]
    assert [group["lr"] for group in optimizer.param_groups[-2:]] == [0.5, 0.05]
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)


def test_without_factors_there_is_one_group_a_network() -> None:
    optimizer: Any = build().configure_optimizers()
    assert [group["name"] for group in optimizer.param_groups] == ["student", "ensemble"]


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (lambda optimizer: MultiStepLR(optimizer, [1], gamma=0.1), [0.05, 0.005]),
        (lambda optimizer: CosineAnnealingLR(optimizer, T_max=2), [0.25, 0.025]),
        (lambda optimizer: LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)), [0.25, 0.025]),
    ],
)
def test_schedulers_keep_the_factor(scheduler: Callable[[Any], LRScheduler], expected: list[float]) -> None:
    module = build(peer_lr_scale=[1.0, 0.1], scheduler=scheduler)
    fit = trainer()
    fit.fit(module, train_loader())
    rates = {group["name"]: group["lr"] for group in fit.optimizers[0].param_groups}
    assert [rates["student"], rates["student/peer_1"]] == pytest.approx(expected, rel=1e-12)
    assert rates["student/peer_0"] == rates["student"]


def test_a_scheduler_that_sets_rates_of_its_own_is_refused() -> None:
    def scheduler(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return OneCycleLR(optimizer, max_lr=0.1, total_steps=10)

    with pytest.raises(ConfigError, match="OneCycleLR sets learning rates of its own"):
        build(peer_lr_scale=[1.0, 0.1], scheduler=scheduler).configure_optimizers()


def test_the_teachers_initialisation_knows_no_factor() -> None:
    rates: list[float] = []

    class Watch(TeacherInitialisation):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            real = pl_module.teacher.initialise

            def initialise(batches: Any, lr: float) -> None:
                rates.append(lr)
                real(batches, lr)

            pl_module.teacher.initialise = initialise
            super().on_train_start(trainer, pl_module)

    module = build("dkel", SEPARATE, peer_lr_scale=[0.1, 1.0])
    trainer(Watch(), max_steps=1).fit(module, train_loader())
    assert rates == [pytest.approx(0.5 * 0.01, rel=1e-12)]


@pytest.mark.parametrize("peers", [2, SEPARATE])
def test_a_frozen_peer_keeps_weights_and_statistics_while_the_rest_learns(peers: Any) -> None:
    module = build(peers=peers, frozen_peers=[0])
    module.eval().train()
    frozen = module.student.network.own_part(0)
    state = {name: value.clone() for name, value in frozen.state_dict().items()}
    before, after = one_step(module)
    assert all(torch.equal(value, state[name]) for name, value in frozen.state_dict().items())
    assert all(p.grad is None for p in frozen.parameters())
    assert module.student.network.training
    assert not any(layer.training for layer in frozen.modules())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    part = "branches.0." if isinstance(peers, int) else "peers.0."
    assert moved == {name for name in before if not name.startswith(part)}  # a shared trunk too


def test_a_shared_trunk_learns_from_the_frozen_branch_as_well() -> None:
    views, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    module = build(frozen_peers=[1])
    nn.functional.cross_entropy(module.student(views).logits[1], labels).backward()
    trunk = [p.grad for p in module.student.network.trunk.parameters()]
    assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in trunk)


def test_a_frozen_peer_is_deployed_unfrozen_and_the_checkpoint_round_trips(tmp_path: Any) -> None:
    module, fit = build(frozen_peers=[0], peer_lr_scale=[1.0, 0.5]), trainer()
    fit.fit(module, train_loader())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "x.ckpt")
    assert loaded.student.frozen_peers == (0,)
    assert loaded.student.peer_lr_scale == (1.0, 0.5)
    assert same(parameters_of(loaded.student), parameters_of(module.student))
    assert all(p.requires_grad for p in module.deploy("student", 0).parameters())


def test_a_student_fitted_alone_knows_both() -> None:
    student = StudentModule(peers_network(), PLAIN, peer_lr_scale=[1.0, 0.1], frozen_peers=[0])
    optimizer: Any = student.configure_optimizers()
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"network": 0.5, "network/peer_1": 0.05}


@pytest.mark.parametrize("scale", [None, [2, 1]])
def test_a_rate_that_is_a_whole_number_of_any_size_steps(scale: list[float] | None) -> None:
    student = StudentModule(peers_network(), partial(torch.optim.SGD, lr=2**64), peer_lr_scale=scale)
    optimizer: Any = student.configure_optimizers()
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert {type(group["lr"]) for group in optimizer.param_groups} == {float}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peer_lr_scale": [1.0]}, "a positive factor for each of 2 peers"),
        ({"peer_lr_scale": [1.0, 0.0]}, "a positive factor for each of 2 peers"),
        ({"frozen_peers": [2]}, "name each once, of 0 to 1"),
        ({"frozen_peers": [0, 0]}, "name each once, of 0 to 1"),
        ({"frozen_peers": [0, 1]}, "at least one must learn"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**settings)
