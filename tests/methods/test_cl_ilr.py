"""CL-ILR: its loss and gradients by hand, the scaled gradient at the split, a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dkel_lightning import DistillationModule, methods
from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import BranchedNetwork
from dkel_lightning.schedules import Clock
from tests.methods.family import draw, from_mean_of_others, step, total
from tests.modules.toy import build, images_and_labels, parameters_of

LABELS = torch.tensor([0, 2, 1, 2])
OKDDIP_PORT: dict[str, Any] = {"beta": None, "temperature": 3.0, "detach": False, "rampup": {"epochs": 80}}


def loss(logits: Tensor, labels: Tensor, epoch: int = 0, **settings: Any) -> Tensor:
    method = methods.create("cl_ilr", len(logits), settings).double()
    method.rampup_weight.fill_(method.rampup.weight(Clock(epoch)))
    terms = method.loss_terms(step(logits, None, labels))
    assert tuple(terms) == method.terms
    return total(terms)


@pytest.mark.parametrize(
    ("settings", "epoch", "expected"),
    [
        ({}, 0, (0.5, 0.5, 2.0, True)),
        ({"beta": 0.8}, 299, (0.8, 0.2, 2.0, True)),
        (OKDDIP_PORT, 0, (1.0, math.exp(-5), 3.0, False)),
        (OKDDIP_PORT, 40, (1.0, math.exp(-1.25), 3.0, False)),
        (OKDDIP_PORT, 80, (1.0, 1.0, 3.0, False)),
    ],
)
def test_loss_and_gradients_of_three_heads_are_those_of_plain_torch(
    settings: dict[str, Any], epoch: int, expected: tuple[float, float, float, bool]
) -> None:
    logits = draw(3, 4, 3, seed=1).requires_grad_()
    value, by_hand = loss(logits, LABELS, epoch, **settings), from_mean_of_others(logits, LABELS, *expected)
    assert value.item() == pytest.approx(by_hand.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], torch.autograd.grad(by_hand, logits)[0])


def gradients(module: DistillationModule) -> dict[str, Tensor]:
    images, labels = images_and_labels(6)
    module.zero_grad()
    module.training_step((images.double(), labels), 0).backward()
    return {name: p.grad.clone() for name, p in module.student.network.named_parameters() if p.grad is not None}


def test_the_trunk_gets_a_third_of_the_gradient_of_three_heads_and_the_heads_all_of_theirs() -> None:
    module = build("cl_ilr", peers=3).double()
    network = module.student.network
    assert isinstance(network, BranchedNetwork)
    scaled = gradients(module)
    network.gradient_scale = 1.0
    whole = gradients(module)
    assert scaled.keys() == whole.keys() == parameters_of(network).keys()
    for name, gradient in scaled.items():
        factor = 1 / 3 if name.startswith("trunk.") else 1.0
        torch.testing.assert_close(gradient, factor * whole[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("peers", [["resnet8", "resnet8"], 2])
def test_peers_without_a_common_trunk_are_refused(peers: Any) -> None:
    with pytest.raises(ConfigError, match=r"CLILR needs peers that share a trunk: .*method\.sharing=trunk"):
        DistillationModule.build("resnet8", 3, "cl_ilr", peers, sharing="nothing")
