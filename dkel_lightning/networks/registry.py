"""Backbones by name, and networks of peers made from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import densenet, resnet, vgg
from dkel_lightning.networks.peers import Branch, BranchedNetwork, IndependentPeers, PeerNetwork, SinglePeer
from dkel_lightning.settings.declarations import unknown_choice


@dataclass(frozen=True)
class Backbone:
    """A classifier in two parts, the first of which peers can share.

    Attributes:
        name: Its name in configurations.
        make_trunk: Input channels -> everything but the last stage.
        make_branch: Number of classes -> last stage, pooling and classifier, freshly drawn at each call.
        min_size: Height and width of the smallest image that it can be trained on, in batches of at least two.
        start_linear: Initialises its linear layers, and the ensemble classifier over its features; None: as torch does.
    """

    name: str
    make_trunk: Callable[[int], nn.Module]
    make_branch: Callable[[int], Branch]
    min_size: int
    start_linear: Callable[[nn.Linear], None] | None = None


BACKBONES: dict[str, Backbone] = {}


def register_backbone(backbone: Backbone) -> Backbone:
    """Register `backbone` under its name, for `create` and checkpoints."""
    if backbone.name in BACKBONES:
        raise ConfigError(f"A backbone named {backbone.name!r} exists already: give yours another name.")
    BACKBONES[backbone.name] = backbone
    return backbone


def create(
    backbone: str | None,
    num_classes: int,
    peers: int | Sequence[str],
    *,
    in_channels: int = 3,
    image_size: tuple[int, int] | None = None,
    equal_classifiers: bool = False,
    views_per_pass: str = "all",
) -> PeerNetwork:
    """Make a network of peers, its weights drawn from torch's global generator; every branch is drawn on its own.

    Args:
        backbone: The name of a registered backbone; not used when `peers` names its own.
        num_classes: Number of classes, at least 2.
        peers: Number of branches that share a trunk, or the backbone of each peer, which then share nothing.
        in_channels: Channels of an image.
        image_size: Height and width; checked against the backbones' smallest size when given.
        equal_classifiers: Start all branches with the classifier of the first, as the ResNets and the DenseNet of
            DKEL's released code do (its VGG does not).
        views_per_pass: `all` or `one`, see `SharedTrunk`.
    """
    if num_classes < 2:
        raise ConfigError(f"num_classes must be at least 2, not {num_classes}.")
    image_shape = (in_channels, *(image_size or (32, 32)))
    network: PeerNetwork
    if isinstance(peers, str) or not peers:
        raise ConfigError(f"peers must be a number above 0 or a list of backbones, not {peers!r}.")
    if isinstance(peers, int):
        chosen = _find(backbone, image_size)
        trunk = chosen.make_trunk(in_channels)
        branches = [chosen.make_branch(num_classes) for _ in range(peers)]
        if equal_classifiers:
            for branch in branches[1:]:
                branch.classifier.load_state_dict(branches[0].classifier.state_dict())
        network = BranchedNetwork(trunk, branches, views_per_pass)
    else:
        if equal_classifiers:
            raise ConfigError(
                "equal_classifiers needs branches of one trunk: give peers as a number, or set it to false."
            )
        several = [_find(name, image_size) for name in peers]
        network = IndependentPeers(
            [SinglePeer(one.make_trunk(in_channels), one.make_branch(num_classes)) for one in several]
        )
    network.image_shape = image_shape
    return network


def _find(name: str | None, image_size: tuple[int, int] | None) -> Backbone:
    if name not in BACKBONES:
        raise ConfigError(unknown_choice("backbone", str(name), BACKBONES))
    backbone = BACKBONES[name]
    if image_size is not None and min(image_size) < backbone.min_size:
        height, width = image_size
        raise ConfigError(
            f"Images of {height}x{width} are too small for {name}, which needs at least "
            f"{backbone.min_size}x{backbone.min_size}: resize them or take another backbone."
        )
    return backbone


for _name, _spec in resnet.SPECS.items():
    _trunk, _branch = partial(resnet.make_trunk, _spec), partial(resnet.make_branch, _spec)
    register_backbone(Backbone(_name, _trunk, _branch, min_size=1))  # padding keeps 1x1 through every stride
register_backbone(Backbone("vgg16", vgg.make_trunk, vgg.make_branch, 32, vgg.start_linear))
register_backbone(Backbone("densenet40_12", densenet.make_trunk, densenet.make_branch, 4, densenet.start_linear))
