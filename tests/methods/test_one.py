"""ONE: its loss and gradients by hand, and what its gate learns from."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from dkel_lightning import DistillationModule, MethodInputs, PeerOutputs
from dkel_lightning.errors import ConfigError
from dkel_lightning.methods.one import ONE, ONESettings
from dkel_lightning.networks import create
from tests.methods.family import total
from tests.modules.toy import parameters_of

LABELS = torch.tensor([0, 2, 1, 2])


def method(peers: int, *, detach: bool = True, rampup: float = 0.7) -> ONE:
    torch.manual_seed(0)
    made = ONE(peers, ONESettings(detach=detach))
    made.attach(create("resnet8", 3, peers, in_channels=1))
    made.double().train().rampup_weight.fill_(rampup)
    return made


def inputs(peers: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(peers)
    logits = (2 * torch.randn(peers, 4, 3, generator=draws, dtype=torch.float64)).requires_grad_()
    trunk = torch.randn(4, 32, 2, 2, generator=draws, dtype=torch.float64)  # what resnet8's trunk gives
    return logits, trunk


def by_hand(one: ONE, logits: Tensor, trunk: Tensor, *, detach: bool) -> Tensor:
    """Compute the loss from the formula, in plain torch."""
    linear, norm = one.gate[0], one.gate[1]  # type: ignore[index]
    scores = trunk.mean((2, 3)) @ linear.weight.T + linear.bias
    scores = (scores - scores.mean(0)) / (scores.var(0, unbiased=False) + norm.eps).sqrt()
    gates = (scores * norm.weight + norm.bias).relu().softmax(1)
    ensemble = sum(gates[:, i : i + 1] * logits[i] for i in range(len(logits)))
    assert isinstance(ensemble, Tensor)
    target = ((ensemble.detach() if detach else ensemble) / 3).log_softmax(-1)
    loss = F.cross_entropy(ensemble, LABELS)
    for peer in logits:
        divergence = (target.exp() * (target - (peer / 3).log_softmax(-1))).sum(-1).mean() * 9
        loss = loss + F.cross_entropy(peer, LABELS) + 0.7 * divergence
    return loss


def loss(one: ONE, logits: Tensor, trunk: Tensor) -> dict[str, Tensor]:
    output = PeerOutputs(logits, logits, trunk=(trunk,) * len(logits))
    output = output._replace(ensemble_logits=one.combine(output))
    return one.loss_terms(MethodInputs(LABELS, output, None))


@pytest.mark.parametrize("peers", [2, 3, 4])
@pytest.mark.parametrize("detach", [True, False])
def test_loss_and_gradients_are_those_of_the_formula(peers: int, detach: bool) -> None:
    one, (logits, trunk) = method(peers, detach=detach), inputs(peers)
    terms = loss(one, logits, trunk)
    assert tuple(terms) == one.terms
    value, expected = total(terms), by_hand(one, logits, trunk, detach=detach)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    learning = [logits, *one.parameters()]
    for ours, wanted in zip(torch.autograd.grad(value, learning), torch.autograd.grad(expected, learning), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("detach", [True, False])
def test_the_gate_learns_from_what_is_taught_only_when_it_is_not_detached(detach: bool) -> None:
    one, (logits, trunk) = method(3, detach=detach), inputs(3)
    gradients = torch.autograd.grad(loss(one, logits, trunk)["kd_ensemble"], list(one.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients) is detach


@pytest.mark.parametrize(
    ("name", "width"), [("resnet32", 32), ("resnet110", 128), ("vgg16", 512), ("densenet40_12", 60), ("resnet18", 256)]
)
def test_the_gate_is_as_wide_as_the_trunks_output(name: str, width: int) -> None:
    one = ONE(2)
    one.attach(create(name, 3, 2))
    assert parameters_of(one)["gate.0.weight"].shape == (2, width)


@pytest.mark.parametrize(
    ("name", "split_at", "size", "width"),
    [("efficientnet_b0", "blocks.5", 64, 112), ("vit_tiny_patch16_224", "blocks.8", 224, 192)],
)
def test_a_cut_model_has_a_gate_whatever_follows_the_cut(name: str, split_at: str, size: int, width: int) -> None:
    model = timm.create_model(name, num_classes=3)
    module = DistillationModule.build(model, 3, "one", split_at=split_at, image_size=(size, size))
    assert parameters_of(module.method)["gate.0.weight"].shape == (3, width)
    assert module(torch.randn(2, 3, size, size)).ensemble_logits.shape == (2, 3)


def test_views_of_their_own_are_gated_by_their_mean() -> None:
    one, (logits, trunk) = method(2).eval(), inputs(2)
    views = (trunk, 3 * trunk)
    several = one.combine(PeerOutputs(logits, logits, trunk=views))
    torch.testing.assert_close(several, one.combine(PeerOutputs(logits, logits, trunk=(2 * trunk,) * 2)))


def test_peers_without_a_shared_trunk_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ONE needs peers that share a trunk: .*method\.sharing=trunk"):
        DistillationModule.build("resnet8", 4, "one", sharing="nothing", in_channels=1)
