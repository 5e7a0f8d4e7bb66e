"""Whole classifiers of torchvision and timm by name, built without a download."""

from __future__ import annotations

import difflib

from torch import nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks.peers import Branch, IndependentPeers, SinglePeer

SOURCES = ("torchvision", "timm")


def is_external(name: str | None) -> bool:
    """Whether `name` has the form torchvision:NAME or timm:NAME."""
    return name is not None and name.partition(":")[0] in SOURCES and ":" in name


def external(name: str, num_classes: int, in_channels: int) -> IndependentPeers:
    """Build the classifier `name` (`torchvision:resnet50`) as a network of one peer, its weights freshly drawn.

    It is taken whole: its features are its logits, so it serves as a teacher or as a single peer.

    Raises:
        ConfigError: an unknown model, timm is not installed, or the model cannot take such images.
    """
    source, _, model_name = name.partition(":")
    build = _from_torchvision if source == "torchvision" else _from_timm
    model = build(model_name, num_classes, in_channels)
    return IndependentPeers([SinglePeer(nn.Identity(), Branch(model, nn.Identity(), num_classes, num_classes))])


def _from_torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(_unknown("torchvision", name, known))
    if in_channels != 3:
        raise ConfigError(
            f"torchvision:{name} takes images of 3 channels, the data has {in_channels}: take a registered backbone, "
            "or timm:NAME, which adapts to the channels."
        )
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return model


def _from_timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ConfigError(f"timm:{name} needs timm: pip install 'dkel-lightning[timm]'.") from error
    if not timm.is_model(name):
        raise ConfigError(_unknown("timm", name, timm.list_models()))
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    return model


def _unknown(source: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{source} has no classifier {name!r}.{hint}"
