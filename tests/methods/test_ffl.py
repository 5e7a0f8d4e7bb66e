"""FFL: its loss and gradients by hand, its fusion module, its ensemble."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import resnet18

from dkel_lightning import DistillationModule, MethodInputs, PeerOutputs
from dkel_lightning.errors import ConfigError
from dkel_lightning.methods.ffl import FFL
from dkel_lightning.networks import create
from tests.methods.family import total

LABELS = torch.tensor([0, 2, 1])


def kd(student: Tensor, teacher: Tensor) -> Tensor:
    target = (teacher.detach() / 3).log_softmax(-1)
    return (target.exp() * (target - (student / 3).log_softmax(-1))).sum(-1).mean() * 9


@pytest.mark.parametrize("peers", [2, 3, 4])
def test_loss_and_gradients_are_those_of_the_formula_and_both_targets_are_detached(peers: int) -> None:
    draws = torch.Generator().manual_seed(peers)
    logits = (2 * torch.randn(peers, 3, 4, generator=draws, dtype=torch.float64)).requires_grad_()
    fused = torch.randn(3, 4, generator=draws, dtype=torch.float64).requires_grad_()
    ffl = FFL(peers).double()
    ffl.rampup_weight.fill_(0.7)
    terms = ffl.loss_terms(MethodInputs(LABELS, PeerOutputs(logits, logits, fused), None))
    assert tuple(terms) == ffl.terms
    expected = F.cross_entropy(fused, LABELS) + 0.7 * kd(fused, sum(logits[i] for i in range(peers)) / peers)  # type: ignore[arg-type]
    for peer in logits:
        expected = expected + F.cross_entropy(peer, LABELS) + 0.7 * kd(peer, fused)
    value = total(terms)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    learning = [logits, fused]
    for ours, wanted in zip(torch.autograd.grad(value, learning), torch.autograd.grad(expected, learning), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


def test_the_fusion_is_depthwise_then_pointwise_on_the_maps_before_pooling() -> None:
    torch.manual_seed(0)
    network, ffl = create("resnet8", 4, 2, in_channels=1).eval(), FFL(2)
    ffl.attach(network)
    ffl.eval()
    images = torch.randn(3, 1, 8, 8)
    seen = network(images)
    assert seen.maps is not None
    assert isinstance(seen.features, Tensor)
    torch.testing.assert_close(seen.maps[1].mean((2, 3)), seen.features[1])
    weights = dict(ffl.named_parameters())
    assert weights["fusion.0.weight"].shape == (128, 1, 3, 3)
    assert weights["fusion.3.weight"].shape == (64, 128, 1, 1)
    hidden = F.conv2d(torch.cat(seen.maps, 1), weights["fusion.0.weight"], padding=1, groups=128)
    hidden = F.conv2d((hidden / (1 + 1e-5) ** 0.5).relu(), weights["fusion.3.weight"])  # fresh BatchNorm, eval mode
    pooled = (hidden / (1 + 1e-5) ** 0.5).relu().mean((2, 3))
    expected = pooled @ weights["fusion.8.weight"].T + weights["fusion.8.bias"]
    output = PeerOutputs(seen.logits, seen.features, trunk=seen.trunk, maps=seen.maps)
    torch.testing.assert_close(ffl.combine(output), expected, rtol=1e-4, atol=1e-5)


def test_networks_that_do_not_tell_their_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match="ffl fuses feature maps, which this network does not provide"):
        DistillationModule.build(resnet18(num_classes=4), 4, "ffl", split_at="layer4", image_size=(32, 32))


def test_maps_that_differ_in_size_are_refused_and_maps_that_differ_in_width_are_fused() -> None:
    with pytest.raises(ConfigError, match=r"those of the peers differ in size: \[\(1, 1\), \(8, 8\)\]"):
        FFL(2).attach(create(None, 4, ["resnet8", "vgg16"]))
    ffl, mixed = FFL(2), create(None, 4, ["resnet8", "densenet40_12"], in_channels=1)
    ffl.attach(mixed)
    seen = mixed(torch.randn(3, 1, 8, 8))
    assert ffl.combine(PeerOutputs(seen.logits, seen.features, maps=seen.maps)).shape == (3, 4)


def test_the_labels_reach_the_peers_through_the_fusion() -> None:
    network, ffl = create("resnet8", 4, 2, in_channels=1), FFL(2)
    ffl.attach(network)
    seen = network(torch.randn(3, 1, 8, 8))
    fused = ffl.combine(PeerOutputs(seen.logits, seen.features, trunk=seen.trunk, maps=seen.maps))
    bodies = [next(branch.body.parameters()) for branch in network.branches]
    assert all(gradient.any() for gradient in torch.autograd.grad(fused.square().sum(), bodies))
