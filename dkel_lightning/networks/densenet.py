"""DenseNet-BC 40-12 for small images (Huang et al. 2017), in the form of DKEL's released code.

Three dense blocks of six layers, growth 12, compression 0.5. The last block, with a final BatchNorm, branches.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from dkel_lightning.networks.peers import Branch, kaiming_

GROWTH = 12
LAYERS = 6
BLOCKS = 3
STEM = 2 * GROWTH


class DenseLayer(nn.Module):
    """A layer that appends its `GROWTH` new channels to its input: [B, C, H, W] to [B, C + GROWTH, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.new = nn.Sequential(
            *_norm_relu_conv(channels, 4 * GROWTH, kernel=1), *_norm_relu_conv(4 * GROWTH, GROWTH, kernel=3)
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, self.new(images)], dim=1)


def make_trunk(in_channels: int) -> nn.Sequential:
    """Make everything before the last dense block: `stem`, `stage1`, `transition1`, `stage2`, `transition2`."""
    channels = STEM
    # The stem has no BatchNorm: every dense layer begins with its own.
    children: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False))
    for number in range(1, BLOCKS):
        children[f"stage{number}"] = _dense_block(channels)
        channels += LAYERS * GROWTH
        children[f"transition{number}"] = nn.Sequential(
            *_norm_relu_conv(channels, channels // 2, kernel=1), nn.AvgPool2d(2)
        )
        channels //= 2
    return kaiming_(nn.Sequential(children), "fan_in")


def make_branch(num_classes: int) -> Branch:
    """Make the last dense block, the final BatchNorm, pooling and a linear classifier."""
    channels = STEM
    for _ in range(BLOCKS - 1):
        channels = (channels + LAYERS * GROWTH) // 2
    width = channels + LAYERS * GROWTH
    children: OrderedDict[str, nn.Module] = OrderedDict()
    children[f"stage{BLOCKS}"] = _dense_block(channels)
    children["norm"] = nn.BatchNorm2d(width)
    children["relu"] = nn.ReLU(inplace=True)
    children["pool"] = nn.AdaptiveAvgPool2d(1)
    children["flatten"] = nn.Flatten()
    classifier = nn.Linear(width, num_classes)
    start_linear(classifier)
    return Branch(kaiming_(nn.Sequential(children), "fan_in"), classifier, width, num_classes)


def start_linear(linear: nn.Linear) -> None:
    """Set the bias to zero; the weights are drawn as torch does."""
    nn.init.zeros_(linear.bias)


def _dense_block(channels: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(channels + layer * GROWTH) for layer in range(LAYERS)))


def _norm_relu_conv(in_channels: int, out_channels: int, kernel: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), conv
