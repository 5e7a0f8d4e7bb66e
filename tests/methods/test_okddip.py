"""OKDDip: its loss and gradients by hand, its attention, its leader."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dkel_lightning import MethodInputs, PeerOutputs
from dkel_lightning.errors import ConfigError
from dkel_lightning.methods.okddip import OKDDip
from dkel_lightning.networks import create
from tests.methods.family import total

LABELS = torch.tensor([0, 2])


def method(peers: int) -> OKDDip:
    torch.manual_seed(0)
    made = OKDDip(peers)
    made.attach(create("resnet8", 3, peers, in_channels=1))
    made.double().rampup_weight.fill_(0.7)
    return made


def inputs(peers: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(peers)
    logits = 2 * torch.randn(peers, 2, 3, generator=draws, dtype=torch.float64)
    return logits.requires_grad_(), torch.randn(peers, 2, 64, generator=draws, dtype=torch.float64).requires_grad_()


def kd(student: Tensor, teacher: Tensor) -> Tensor:
    target = (teacher / 3).log_softmax(-1)
    return (target.exp() * (target - (student / 3).log_softmax(-1))).sum(-1).mean() * 9


def by_hand(okddip: OKDDip, logits: Tensor, features: Tensor) -> Tensor:
    """Compute the loss from the formula, sample by sample and peer by peer."""
    peers, loss = len(logits), F.cross_entropy(logits[-1], LABELS)
    targets = []
    for a in range(peers - 1):
        rows = []
        for sample in range(2):
            query = okddip.query.weight @ features[a, sample]
            scores = torch.stack([query @ (okddip.key.weight @ features[b, sample]) for b in range(peers - 1)])
            weights = scores.softmax(0)
            rows.append(torch.stack([weights[b] * logits[b, sample] for b in range(peers - 1)]).sum(0))
        targets.append(torch.stack(rows))
    for a, target in enumerate(targets):
        loss = loss + F.cross_entropy(logits[a], LABELS) + 0.7 * kd(logits[a], target)
    mean = torch.stack([logits[b] for b in range(peers - 1)]).mean(0)
    return loss + 0.7 * kd(logits[-1], mean)


@pytest.mark.parametrize("peers", [3, 4, 5])
def test_loss_and_gradients_are_those_of_the_formula_with_nothing_detached(peers: int) -> None:
    okddip, (logits, features) = method(peers), inputs(peers)
    terms = okddip.loss_terms(MethodInputs(LABELS, PeerOutputs(logits, features), None))
    assert tuple(terms) == okddip.terms
    value, expected = total(terms), by_hand(okddip, logits, features)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    learning = [logits, features, *okddip.parameters()]
    for ours, wanted in zip(torch.autograd.grad(value, learning), torch.autograd.grad(expected, learning), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)
        assert ours.abs().max() > 0


def test_the_leaders_features_take_no_part_in_the_attention() -> None:
    okddip, (logits, features) = method(4), inputs(4)
    terms = okddip.loss_terms(MethodInputs(LABELS, PeerOutputs(logits, features), None))
    gradient = torch.autograd.grad(terms["kd_peers"], features)[0]
    assert torch.equal(gradient[-1], torch.zeros_like(gradient[-1]))
    weights = okddip.attention(features[:-1])
    assert weights.shape == (2, 3, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, dtype=torch.float64))


def test_peers_of_differing_widths_are_refused() -> None:
    mixed = create(None, 4, ["resnet8", "densenet40_12", "resnet8"], in_channels=1)
    with pytest.raises(ConfigError, match=r"differ in width: \[64, 132\]"):
        OKDDip(3).attach(mixed)
