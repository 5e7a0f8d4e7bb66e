"""Backbones by name, and networks of peers made from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import densenet, resnet, vgg
from dkel_lightning.networks.peers import Branch, BranchedNetwork, IndependentPeers, PeerNetwork, SinglePeer
from dkel_lightning.settings.declarations import unknown_choice


@dataclass(frozen=True)
class Backbone:
    """A classifier that comes in two parts, so that peers can share the first.

    Attributes:
        name: What configurations call it.
        make_trunk: Input channels -> everything but the last stage.
        make_branch: Number of classes -> last stage, pooling and classifier, freshly drawn at each call.
        min_size: Height and width of the smallest image that it can be trained on, in batches of at least two.
        summary: One line for people.
        start_linear: Draws its linear layers, where torch's own draw is not theirs; the ensemble's classifier too.
    """

    name: str
    make_trunk: Callable[[int], nn.Module]
    make_branch: Callable[[int], Branch]
    min_size: int
    summary: str
    start_linear: Callable[[nn.Linear], None] | None = None


BACKBONES: dict[str, Backbone] = {}
_SIZE = (32, 32)
"""Height and width that every backbone here takes."""


def register_backbone(backbone: Backbone) -> Backbone:
    """Make `backbone` known under its name, to `create` and to checkpoints that name it.

    Raises:
        ConfigError: If the name is taken.
    """
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
    """Make a network of peers, its weights drawn from torch's global generator.

    Call it under `seeding.seeded` for weights that depend on nothing else. Every branch is drawn on its own.

    Args:
        backbone: The name of a registered backbone; not used when `peers` names its own.
        num_classes: Classes to tell apart, at least 2.
        peers: How many branches share a trunk, or the backbone of each peer, which then share nothing.
        in_channels: Channels of an image.
        image_size: Height and width; checked against what the backbones can take when given.
        equal_classifiers: Start all branches with the classifier of the first, as the ResNets and the DenseNet of
            DKEL's released code do (its VGG does not).
        views_per_pass: `all` or `one`, see `BranchedNetwork`.

    Raises:
        ConfigError: If a name is unknown, a number out of range, or the images are too small.
    """
    if num_classes < 2:
        raise ConfigError(f"num_classes must be at least 2, not {num_classes}.")
    if in_channels < 1:
        raise ConfigError(f"in_channels must be at least 1, not {in_channels}.")
    image_shape = (in_channels, *(image_size or _SIZE))
    if not isinstance(peers, int):
        separate = _independent(peers, num_classes, in_channels, image_size, equal_classifiers)
        separate.image_shape = image_shape
        return separate
    if peers < 1:
        raise ConfigError(f"peers must be at least 1, not {peers}.")
    chosen = _find(backbone, image_size)
    trunk = chosen.make_trunk(in_channels)
    branches = [chosen.make_branch(num_classes) for _ in range(peers)]
    if equal_classifiers:
        for branch in branches[1:]:
            branch.classifier.load_state_dict(branches[0].classifier.state_dict())
    network = BranchedNetwork(trunk, branches, views_per_pass)
    network.image_shape = image_shape
    return network


def start_linear(backbones: Collection[str], linear: nn.Linear) -> None:
    """Draw a layer over the features of all peers anew, as their backbone draws its own; leave it if they are several.

    Source: DKEL, released code, whose networks draw the ensemble's classifier with all their layers.
    """
    rules = {BACKBONES[name].start_linear if name in BACKBONES else None for name in backbones}
    if len(rules) == 1 and (rule := rules.pop()) is not None:
        rule(linear)


def _independent(
    names: Sequence[str],
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int] | None,
    equal_classifiers: bool,
) -> IndependentPeers:
    if isinstance(names, str) or not names:
        raise ConfigError(f"peers must be a number or a list of backbones, not {names!r}.")
    if equal_classifiers:
        raise ConfigError("equal_classifiers needs branches of one trunk: give peers as a number, or set it to false.")
    chosen = [_find(name, image_size) for name in names]
    return IndependentPeers([SinglePeer(one.make_trunk(in_channels), one.make_branch(num_classes)) for one in chosen])


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


for _name, (_spec, _summary) in resnet.SPECS.items():
    # Padding keeps a 1x1 image 1x1 through every stride.
    _parts = partial(resnet.make_trunk, _spec), partial(resnet.make_branch, _spec)
    register_backbone(Backbone(_name, *_parts, min_size=1, summary=_summary))
for _name, _module, _size, _summary in (
    ("vgg16", vgg, 32, "VGG-16 with BatchNorm, head 512-512-C"),
    ("densenet40_12", densenet, 4, "DenseNet-BC, dense blocks of 6 layers, growth 12"),
):
    register_backbone(Backbone(_name, _module.make_trunk, _module.make_branch, _size, _summary, _module.start_linear))
