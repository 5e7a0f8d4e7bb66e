"""Networks of peers drawn from a seed: registered networks by name, or a user's model split into trunk and branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.networks import IndependentPeers, PeerNetwork, SplitModel, branch_model, create, redraw_
from dkel_lightning.networks.branching import copied, is_trained, whole_model
from dkel_lightning.networks.cuts import usual_cut, working_cuts
from dkel_lightning.networks.external import make
from dkel_lightning.networks.outline import IMAGE_SHAPE
from dkel_lightning.networks.registry import BACKBONES
from dkel_lightning.runtime.seeding import seeded
from dkel_lightning.settings.backbone import is_external


@dataclass(frozen=True)
class NetworkDraw:
    """Draws networks of peers from seeds. Arguments: see `build`."""

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
    pretrained: bool | None

    def __call__(self, seed: int, purpose: str, *, redraw: bool = False) -> PeerNetwork:
        """Draw the network from (seed, purpose); `redraw` also draws weights that an untrained model came with."""
        with seeded(seed, purpose):
            if isinstance(self.backbone, str) and not is_external(self.backbone):
                return create(
                    self.backbone,
                    self.num_classes,
                    self.peers,
                    in_channels=self.in_channels,
                    image_size=self.image_size,
                    equal_classifiers=self._equal_classifiers,
                    views_per_pass=self.views_per_pass,
                )
            if not isinstance(self.peers, int):
                raise ConfigError("Your own model takes a number of peers, not their names.")
            if self.peers == 1 and self.split_at is None:
                model = self._model(redraw)
                return self._separate([whole_model(model, self.num_classes, self.classifier, self._shape)])
            if self.sharing == "nothing":
                if self.classifiers == "equal":
                    raise ConfigError("Networks that share nothing have classifiers of their own: set classifiers=own.")
                return self._separate([self._split(1, redraw).peers[0] for _ in range(self.peers)])
            network = self._split(self.peers, redraw)
            first, *others = network.classifiers
            for classifier in others if self._equal_classifiers else []:
                classifier.load_state_dict(first.state_dict())
            return network

    def _separate(self, peers: Sequence[Any]) -> PeerNetwork:
        network = IndependentPeers(peers)
        network.image_shape = self._shape
        return network

    def _split(self, peers: int, redraw: bool) -> SplitModel:
        model = self._model(redraw)
        keep = self._keeps(model)
        cut = self.split_at or usual_cut(model, self._shape, self.classifier)
        try:
            network = branch_model(
                model,
                cut,
                peers,
                self.num_classes,
                classifier=self.classifier,
                image_shape=self._shape,
                redraw_branches=not keep,
                views_per_pass=self.views_per_pass,
            )
        except ConfigError as error:
            working = [] if self.split_at else working_cuts(model, self._shape, self.classifier)
            if not working:
                raise
            raise ConfigError(
                f"{error} backbone.split_at (split_at= in Python) may be {' or '.join(working)}."
            ) from error
        if keep and isinstance(self.peers, int) and self.peers > 1:  # equal in all else
            for peer in network.peers:
                peer.draw_classifier(self.num_classes)  # type: ignore[operator]
        return network

    def _model(self, redraw: bool) -> nn.Module:
        if isinstance(self.backbone, str):
            return make(self.backbone, self.num_classes, self.in_channels, self.image_size, bool(self.pretrained))
        model = copy_model(self.backbone)
        return redraw_(model) if redraw and not self._keeps(model) else model

    def _keeps(self, model: nn.Module) -> bool:
        """Whether a model was trained: then only the classifiers are drawn."""
        return bool(is_trained(model) if self.pretrained is None else self.pretrained)

    @property
    def starts_trained(self) -> bool:
        """Whether the networks start from a trained model, or from the pretrained weights of a library."""
        return bool(self.pretrained) if isinstance(self.backbone, str) else self._keeps(self.backbone)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return image_shape(self.in_channels, self.image_size)

    @property
    def _equal_classifiers(self) -> bool:
        # The released VGG draws each branch's classifier; the released ResNets and DenseNet repeat the first.
        return self.classifiers == "equal" or (self.classifiers == "released" and self.backbone != "vgg16")

    def alone(self, backbone: str | None, pretrained: bool = False) -> NetworkDraw:
        """Return the draw of one whole network: of `backbone`, or of the peers' backbone."""
        one = replace(self, peers=1, classifiers="own", sharing="trunk", pretrained=pretrained)
        return one if backbone is None else replace(one, backbone=backbone, split_at=None, classifier=None)

    def start_ensemble(self, classifier: nn.Linear) -> None:
        """Draw the ensemble classifier as the backbone draws its linear layers; as torch does if backbones differ.

        Source: DKEL, released code.
        """
        names = {self.backbone} if isinstance(self.peers, int) else {*self.peers}
        name = names.pop() if len(names) == 1 else None
        start_linear = BACKBONES[name].start_linear if isinstance(name, str) and name in BACKBONES else None
        if start_linear is not None:
            start_linear(classifier)

    def recipe(self) -> dict[str, Any]:
        """Return the arguments as primitives; `backbone` is None for a model of the user's own."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "pretrained"}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {**values, "backbone": self.backbone if isinstance(self.backbone, str) else None}


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model; of a LightningModule, call `configure_model`."""
    model = copied(model)
    if isinstance(model, LightningModule):
        model.configure_model()
    return model


def image_shape(in_channels: int, image_size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Return (channels, height, width) of an image; 224 pixels a side where no size is given."""
    return (in_channels, *(image_size or IMAGE_SHAPE[1:]))
