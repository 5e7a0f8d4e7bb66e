"""Residual networks: the CIFAR form (He et al. 2016, section 4.2), the ImageNet form, forms between, and wide.

Sizes, shortcuts and initialisation are those of DKEL's released code, which other CIFAR forms follow. A 1x1 convolution
with BatchNorm stands in a shortcut wherever the shape changes, also right after the stem (option B). He et al. use
option A, without parameters, in their CIFAR networks: resnet20, 32, 56 and 110_basic have 2,752 parameters more than
theirs, such as 272,474 against 269,722. Wide networks (Zagoruyko & Komodakis 2016) have BatchNorm and ReLU before each
convolution, and none in a shortcut. The last stage branches.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from torch import Tensor, nn

from dkel_lightning.networks.peers import Branch, kaiming_


@dataclass(frozen=True)
class ResNetSpec:
    """Sizes of a residual network; every tuple has an entry for each stage.

    Attributes:
        blocks: Residual blocks in a stage.
        inner: Channels inside a block.
        outer: Channels between blocks.
        bottleneck: Whether a block is 1x1, 3x3, 1x1 instead of 3x3, 3x3.
        stem: Channels of the stem.
        imagenet_stem: Whether the stem is 7x7 with stride 2, instead of 3x3.
        max_pool: Whether a max-pool with stride 2 follows the stem.
        pre_activation: Whether BatchNorm and ReLU come before each convolution instead of after it.
    """

    blocks: tuple[int, ...]
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    bottleneck: bool = False
    stem: int = 16
    imagenet_stem: bool = False
    max_pool: bool = False
    pre_activation: bool = False


_CIFAR = ResNetSpec((1, 1, 1), (16, 32, 64), (16, 32, 64))
_WIDE = ResNetSpec((2, 2, 2), (32, 64, 128), (32, 64, 128), pre_activation=True)
# The released code's form for TinyImageNet: it defines a max-pool and never applies it.
_TINY = ResNetSpec((2, 2, 2, 2), (64, 128, 256, 512), (64, 128, 256, 512), stem=64, imagenet_stem=True)
_34 = (3, 4, 6, 3)

SPECS = {
    "resnet8": _CIFAR,
    "resnet20": replace(_CIFAR, blocks=(3, 3, 3)),
    "resnet32": replace(_CIFAR, blocks=(5, 5, 5)),
    "resnet56": replace(_CIFAR, blocks=(9, 9, 9)),
    "resnet110_basic": replace(_CIFAR, blocks=(18, 18, 18)),
    "resnet110": ResNetSpec((12, 12, 12), (16, 32, 64), (64, 128, 256), bottleneck=True),
    "wide_resnet20_8": ResNetSpec((2, 2, 2), (128, 256, 512), (64, 128, 256), bottleneck=True),
    "wrn_16_2": _WIDE,
    "wrn_40_2": replace(_WIDE, blocks=(6, 6, 6)),
    # For 32 pixels: nothing is halved before the second stage.
    "cifar_resnet18": replace(_TINY, imagenet_stem=False),
    "cifar_resnet34": replace(_TINY, blocks=_34, imagenet_stem=False),
    # The ImageNet form.
    "resnet18": replace(_TINY, max_pool=True),
    "resnet34": replace(_TINY, blocks=_34, max_pool=True),
    # For 64 pixels.
    "tiny_resnet18": _TINY,
    "tiny_resnet34": replace(_TINY, blocks=_34),
}
"""Sizes by the name of the backbone."""


class ResidualBlock(nn.Module):
    """The sum of a residual function and a shortcut, then an activation: [B, C, H, W] to [B, C', H', W']."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module, relu: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut
        self.relu = relu

    def forward(self, images: Tensor) -> Tensor:
        total: Tensor = self.relu(self.residual(images) + self.shortcut(images))
        return total


def make_trunk(spec: ResNetSpec, in_channels: int) -> nn.Sequential:
    """Make the stem and every stage but the last, as children `stem`, `stage1`, ..."""
    children: OrderedDict[str, nn.Module] = OrderedDict(stem=_stem(spec, in_channels))
    for index in range(len(spec.blocks) - 1):
        children[f"stage{index + 1}"] = _stage(spec, index)
    return kaiming_(nn.Sequential(children))


def make_branch(spec: ResNetSpec, num_classes: int) -> Branch:
    """Make the last stage, global average pooling and a linear classifier."""
    last = len(spec.blocks) - 1
    children: OrderedDict[str, nn.Module] = OrderedDict()
    children[f"stage{last + 1}"] = _stage(spec, last)
    if spec.pre_activation:
        children |= {"norm": nn.BatchNorm2d(spec.outer[last]), "relu": nn.ReLU(inplace=True)}
    children["pool"] = nn.AdaptiveAvgPool2d(1)
    children["flatten"] = nn.Flatten()
    width = spec.outer[last]
    return Branch(kaiming_(nn.Sequential(children)), nn.Linear(width, num_classes), width, num_classes)


def _stem(spec: ResNetSpec, in_channels: int) -> nn.Sequential:
    kernel, stride = (7, 2) if spec.imagenet_stem else (3, 1)
    layers: list[nn.Module] = [_conv(in_channels, spec.stem, kernel, stride)]
    if not spec.pre_activation:
        layers += [nn.BatchNorm2d(spec.stem), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, padding=1)] if spec.max_pool else []))


def _stage(spec: ResNetSpec, index: int) -> nn.Sequential:
    channels = spec.stem if index == 0 else spec.outer[index - 1]
    blocks = []
    for block in range(spec.blocks[index]):
        stride = 2 if index > 0 and block == 0 else 1
        blocks.append(_block(spec, index, channels, stride))
        channels = spec.outer[index]
    return nn.Sequential(*blocks)


def _block(spec: ResNetSpec, index: int, channels: int, stride: int) -> nn.Module:
    inner, outer = spec.inner[index], spec.outer[index]
    # (channels, kernel, stride) of each convolution; a bottleneck strides in its 3x3 convolution.
    layers = [(inner, 3, stride), (outer, 3, 1)]
    if spec.bottleneck:
        layers = [(inner, 1, 1), (inner, 3, stride), (outer, 1, 1)]
    residual: list[nn.Module] = []
    width = channels
    for out_channels, kernel, step in layers:
        conv, relu = _conv(width, out_channels, kernel, step), nn.ReLU(inplace=True)
        norm = nn.BatchNorm2d(width if spec.pre_activation else out_channels)
        residual += [norm, relu, conv] if spec.pre_activation else [conv, norm, relu]
        width = out_channels
    same_shape = stride == 1 and channels == outer
    shortcut: nn.Module = nn.Identity() if same_shape else _conv(channels, outer, 1, stride)
    if not spec.pre_activation:
        shortcut = shortcut if same_shape else nn.Sequential(shortcut, nn.BatchNorm2d(outer))
        return ResidualBlock(nn.Sequential(*residual[:-1]), shortcut, residual[-1])  # the last ReLU follows the sum
    if same_shape:
        return ResidualBlock(nn.Sequential(*residual), shortcut, nn.Identity())
    # Where the shape changes, both begin behind the first BatchNorm and ReLU.
    return nn.Sequential(*residual[:2], ResidualBlock(nn.Sequential(*residual[2:]), shortcut, nn.Identity()))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
