"""The backbones' logits, computed again with torch's functions and the networks' own weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dkel_lightning.networks import create


class Weights:
    """Layers of a network by name, in train mode: BatchNorm takes the statistics of the batch."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.used: set[str] = set()

    def take(self, name: str) -> Tensor | None:
        self.used.add(name)
        return self.state.get(name)

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        self.used.add(f"{name}.weight")
        return F.conv2d(x, weight, self.take(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, self.take(f"{name}.weight"), self.take(f"{name}.bias"), training=True)

    def linear(self, x: Tensor, name: str) -> Tensor:
        self.used.add(f"{name}.weight")
        return F.linear(x, self.state[f"{name}.weight"], self.take(f"{name}.bias"))


def resnet(weights: Weights, x: Tensor, blocks: tuple[int, ...], bottleneck: bool = False, stem: str = "3x3") -> Tensor:
    """He et al.: 1x1 and BatchNorm in a shortcut where the shape changes; a bottleneck strides in its 3x3."""
    x = weights.norm(weights.conv(x, "trunk.stem.0", stride=1 if stem == "3x3" else 2), "trunk.stem.1").relu()
    if stem == "7x7 and max-pool":
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, count in enumerate(blocks, start=1):
        place = f"trunk.stage{stage}" if stage < len(blocks) else f"branch.body.stage{stage}"
        for block in range(count):
            name, stride = f"{place}.{block}", 2 if block == 0 and stage > 1 else 1
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            y = x
            for index, step in enumerate(strides):
                y = weights.norm(
                    weights.conv(y, f"{name}.residual.{3 * index}", step), f"{name}.residual.{3 * index + 1}"
                )
                y = y.relu() if index < len(strides) - 1 else y
            if y.shape != x.shape:
                x = weights.norm(weights.conv(x, f"{name}.shortcut.0", stride), f"{name}.shortcut.1")
            x = (x + y).relu()
    return weights.linear(x.mean((2, 3)), "branch.classifier")


def wide_resnet(weights: Weights, x: Tensor, blocks: int) -> Tensor:
    """Zagoruyko & Komodakis: BatchNorm and ReLU before each convolution; a 1x1 shortcut starts behind the first two."""
    x = weights.conv(x, "trunk.stem.0")
    for stage, place in enumerate(("trunk.stage1", "trunk.stage2", "branch.body.stage3"), start=1):
        for block in range(blocks):
            name, stride = f"{place}.{block}", 2 if block == 0 and stage > 1 else 1
            if block == 0:  # the width changes in every stage
                y = weights.norm(x, f"{name}.0").relu()
                x = weights.conv(y, f"{name}.2.shortcut", stride)
                y = weights.norm(weights.conv(y, f"{name}.2.residual.0", stride), f"{name}.2.residual.1").relu()
                x = x + weights.conv(y, f"{name}.2.residual.3")
            else:
                y = weights.conv(weights.norm(x, f"{name}.residual.0").relu(), f"{name}.residual.2")
                x = x + weights.conv(weights.norm(y, f"{name}.residual.3").relu(), f"{name}.residual.5")
    return weights.linear(weights.norm(x, "branch.body.norm").relu().mean((2, 3)), "branch.classifier")


def vgg16(weights: Weights, x: Tensor) -> Tensor:
    """Simonyan & Zisserman: 13 convolutions with BatchNorm, a max-pool after the 2nd, 4th, 7th, 10th and 13th."""
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        place = f"trunk.stage{stage}" if stage < 5 else f"branch.body.stage{stage}"
        for index in range(count):
            x = weights.norm(weights.conv(x, f"{place}.{3 * index}"), f"{place}.{3 * index + 1}").relu()
        x = F.max_pool2d(x, 2)
    x = weights.linear(x.flatten(1), "branch.classifier.0").relu()
    return weights.linear(weights.linear(x, "branch.classifier.2").relu(), "branch.classifier.4")


def densenet(weights: Weights, x: Tensor) -> Tensor:
    """Huang et al., BC: BatchNorm, ReLU, 1x1, BatchNorm, ReLU, 3x3 in a layer; halved width and size between blocks."""
    x = weights.conv(x, "trunk.stem")
    for stage, place in enumerate(("trunk.stage1", "trunk.stage2", "branch.body.stage3"), start=1):
        for layer in range(6):
            y = weights.conv(weights.norm(x, f"{place}.{layer}.new.0").relu(), f"{place}.{layer}.new.2")
            y = weights.conv(weights.norm(y, f"{place}.{layer}.new.3").relu(), f"{place}.{layer}.new.5")
            x = torch.cat([x, y], 1)
        if stage < 3:
            x = weights.conv(weights.norm(x, f"trunk.transition{stage}.0").relu(), f"trunk.transition{stage}.2")
            x = F.avg_pool2d(x, 2)
    return weights.linear(weights.norm(x, "branch.body.norm").relu().mean((2, 3)), "branch.classifier")


def resnet_of(*blocks: int, bottleneck: bool = False, stem: str = "3x3") -> Callable[[Weights, Tensor], Tensor]:
    return lambda weights, x: resnet(weights, x, blocks, bottleneck, stem)


@pytest.mark.parametrize(
    ("name", "size", "by_hand"),
    [
        ("resnet8", 8, resnet_of(1, 1, 1)),
        ("wrn_16_2", 8, lambda weights, x: wide_resnet(weights, x, 2)),
        ("cifar_resnet18", 8, resnet_of(2, 2, 2, 2)),
        ("resnet110", 8, resnet_of(12, 12, 12, bottleneck=True)),
        ("wide_resnet20_8", 8, resnet_of(2, 2, 2, bottleneck=True)),
        ("tiny_resnet18", 64, resnet_of(2, 2, 2, 2, stem="7x7")),
        ("resnet18", 64, resnet_of(2, 2, 2, 2, stem="7x7 and max-pool")),
        ("vgg16", 32, vgg16),
        ("densenet40_12", 8, densenet),
    ],
)
def test_logits_are_those_of_the_definition(name: str, size: int, by_hand: Callable[[Weights, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    peer = create(name, 7, 1).peer(0).double()
    for parameter in peer.parameters():  # BatchNorm's and biases are constant at the start
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    weights = Weights(dict(peer.named_parameters()))
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(peer(images), by_hand(weights, images), rtol=1e-9, atol=1e-9)
    assert weights.state.keys() <= weights.used


def test_a_peer_for_64_pixels_costs_as_many_multiply_adds_as_the_pages_say() -> None:
    # By hand, of convolutions and classifier: of a stage of width c the first block is (9 c/2 + 9 c + c/2) c a place.
    stages = [4 * 9 * 64**2, *(9 * c * c // 2 + 3 * 9 * c * c + c * c // 2 for c in (128, 256, 512))]
    for name, side in (("tiny_resnet18", 32), ("resnet18", 16)):  # of the maps after the stem
        with torch.device("meta"):
            peer, image = create(name, 200, 1).peer(0), torch.empty(1, 3, 64, 64)
        with FlopCounterMode(display=False) as counter:
            peer(image)
        by_hand = 7 * 7 * 3 * 64 * 32**2 + sum(cost * (side // 2**k) ** 2 for k, cost in enumerate(stages)) + 512 * 200
        assert counter.get_total_flops() // 2 == by_hand == {32: 563_384_320, 16: 148_148_224}[side]
