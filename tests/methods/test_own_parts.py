"""Methods with trainable parts of their own: the parts learn, and are drawn from the seed."""

from __future__ import annotations

import pytest

from tests.modules.toy import build, images_and_labels, parameters_of, same, train_loader, trainer

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
