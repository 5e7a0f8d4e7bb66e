"""Networks of peers drawn from a seed: registered ones by name, or a model of the user's own cut in two."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from lightning.pytorch import LightningModule
from torch import nn

from dkel_lightning import networks
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime.seeding import seeded

NO_SPLIT = 'A model of your own needs split_at=, the module at which branches begin ("layer4").'


@dataclass(frozen=True)
class NetworkDraw:
    """Draws a peer network as often as asked, each time from its own seed."""

    backbone: str | nn.Module
    num_classes: int
    peers: int | Sequence[str]
    split_at: str | None
    classifier: str | None
    in_channels: int
    image_size: tuple[int, int] | None
    views_per_pass: str
    classifiers: str
    sharing: str

    def __call__(self, seed: int, purpose: str, *, redraw: bool = False) -> networks.PeerNetwork:
        """Draw the network from (seed, purpose); `redraw` also draws weights that a model came with.

        Raises:
            ConfigError: parts of the choice contradict each other.
        """
        with seeded(seed, purpose):
            if isinstance(self.backbone, str):
                return networks.create(
                    self.backbone,
                    self.num_classes,
                    self.peers,
                    in_channels=self.in_channels,
                    image_size=self.image_size,
                    equal_classifiers=self._equal_classifiers(),
                    views_per_pass=self.views_per_pass,
                )
            if self.split_at is None:
                raise ConfigError(NO_SPLIT)
            if not isinstance(self.peers, int):
                raise ConfigError("A model of your own is given with the number of peers, not with their names.")
            if self.sharing == "nothing":
                separate = networks.IndependentPeers([self._cut(1, redraw).peer(0) for _ in range(self.peers)])
                separate.image_shape = (self.in_channels, *(self.image_size or separate.image_shape[1:]))
                return separate
            network = self._cut(self.peers, redraw)
            network.image_shape = (self.in_channels, *(self.image_size or network.image_shape[1:]))
            if self._equal_classifiers():
                classifiers = [branch.classifier for branch in cast("Iterable[networks.Branch]", network.branches)]
                for classifier in classifiers[1:]:
                    classifier.load_state_dict(classifiers[0].state_dict())
            return network

    def _cut(self, peers: int, redraw: bool) -> networks.BranchedNetwork:
        assert isinstance(self.backbone, nn.Module)
        assert self.split_at is not None
        model = _made(self.backbone)
        if redraw:
            networks.redraw_(model)
        return networks.branch_model(
            model,
            self.split_at,
            peers,
            self.num_classes,
            classifier=self.classifier,
            views_per_pass=self.views_per_pass,
        )

    def alone(self, backbone: str | None) -> NetworkDraw:
        """Draw one whole network: of `backbone`, or of the peers' own."""
        return replace(self, backbone=backbone or self.backbone, peers=1, classifiers="own", sharing="trunk")

    def start_ensemble(self, classifier: nn.Linear) -> None:
        """Draw the classifier over the features of all peers as their backbone draws its own."""
        if isinstance(self.backbone, str):
            networks.start_linear({self.backbone} if isinstance(self.peers, int) else {*self.peers}, classifier)

    def _equal_classifiers(self) -> bool:
        if self.classifiers not in ("own", "equal", "released"):
            raise ConfigError(f"method.classifiers is {self.classifiers!r}: choose one of own, equal, released.")
        # The released VGG draws each branch's classifier; the released ResNets and DenseNet repeat the first.
        return self.classifiers == "equal" or (self.classifiers == "released" and self.backbone != "vgg16")

    def recipe(self) -> dict[str, Any]:
        """Return the choice as primitives; `backbone` is None for a model of the user's own."""
        return {
            "backbone": self.backbone if isinstance(self.backbone, str) else None,
            "num_classes": self.num_classes,
            "peers": self.peers if isinstance(self.peers, int) else list(self.peers),
            "split_at": self.split_at,
            "classifier": self.classifier,
            "in_channels": self.in_channels,
            "image_size": list(self.image_size) if self.image_size is not None else None,
            "views_per_pass": self.views_per_pass,
            "classifiers": self.classifiers,
            "sharing": self.sharing,
        }


def _made(model: nn.Module) -> nn.Module:
    """Copy a model; a LightningModule that makes its layers in `configure_model` makes them now."""
    made = copy.deepcopy(model)
    if isinstance(made, LightningModule):
        made.configure_model()
    return made


def classes_of(model: nn.Module, split_at: str | None, classifier: str | None) -> int:
    """Count the classes of a model of the user's own."""
    if split_at is None:
        raise ConfigError(NO_SPLIT)
    return networks.classes_of(_made(model), split_at, classifier)
