"""VGG-16 with BatchNorm for small images (Simonyan and Zisserman 2015), in the form of DKEL's released code.

Five stages that each end in a max-pool, then a head 512-512-C without dropout. The last stage and the head branch.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from dkel_lightning.networks.peers import Branch, kaiming_

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of each convolution, stage by stage."""


def make_trunk(in_channels: int) -> nn.Sequential:
    """Make the first four stages, as children `stage1` to `stage4`."""
    children: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for number, widths in enumerate(STAGES[:-1], start=1):
        children[f"stage{number}"] = _stage(channels, widths)
        channels = widths[-1]
    return kaiming_(nn.Sequential(children))


def make_branch(num_classes: int) -> Branch:
    """Make the fifth stage, a pooling to 1x1 and the three-layer head.

    The features are the 512 values before the head. At 32 pixels the last max-pool already leaves 1x1 and the pooling
    changes nothing; larger images need it.
    """
    children: OrderedDict[str, nn.Module] = OrderedDict()
    children["stage5"] = _stage(STAGES[-2][-1], STAGES[-1])
    children["pool"] = nn.AdaptiveAvgPool2d(1)
    children["flatten"] = nn.Flatten()
    width = STAGES[-1][-1]
    head = nn.Sequential(
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
        nn.Linear(width, num_classes),
    )
    for linear in (layer for layer in head if isinstance(layer, nn.Linear)):
        start_linear(linear)
    return Branch(kaiming_(nn.Sequential(children)), head, width, num_classes)


def start_linear(linear: nn.Linear) -> None:
    """Draw the weights from N(0, 0.01^2); set the bias to zero."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)


def _stage(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        conv = nn.Conv2d(channels, width, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.MaxPool2d(2))
