"""Linear classifiers on the stages of a frozen network: the second of the three stages of DIH (arXiv 2103.00497)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import at_least_float32, cross_entropy
from dkel_lightning.methods.base import STUDENT, Layers, Method, MethodSettings, Needs, register
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.networks.watching import Named, layers_of

SETTING = "method.layers"


class Classifiers(nn.ModuleList):
    """A classifier on the output of each named module of a network of one peer: flatten, then a linear layer.

    Args:
        network: is watched from now on.
        layers: names; None for all stages.

    Source: DIH, released code.
    """

    def __init__(self, network: PeerNetwork, layers: Sequence[str] | None) -> None:
        self.layers = layers_of(network.peer(0), layers, SETTING)
        seen = network.watch(self.layers, SETTING) if self.layers else {}
        widths = [prod(seen[layer][0].shape[1:]) for layer in self.layers]
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(width, network.num_classes)) for width in widths)

    def logits(self, named: Named | None) -> Tensor:
        """Classify what the network's modules have returned, [k, V, B, C], V passes of the one peer."""
        assert named is not None
        pairs = [(head, named[layer]) for head, layer in zip(self, self.layers, strict=True)]
        return torch.stack([torch.stack([head(at_least_float32(output)) for output in maps]) for head, maps in pairs])


@dataclass(frozen=True)
class HeadsSettings(MethodSettings):
    """Settings of heads on a frozen network."""

    layers: Layers = None


@register("heads", peers=1)
class Heads(Method):
    """Linear classifiers on the stages of a frozen network (backbone.weights): the second stage of dih.

    `L = sum_h CE(z_h)`: a classifier on each stage learns from the labels; the network does not change.

    Deployed: the unchanged network. `method=dih` takes the heads from this training's checkpoint.
    """

    Settings = HeadsSettings
    needs = Needs(teacher=False, fixed_student=True, maximum_peers=1, deploy=STUDENT)
    settings: HeadsSettings
    terms = ("ce_heads",)

    heads: Classifiers

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        if self.settings.layers == ():
            raise ConfigError(
                "method.layers is empty, so there is no head to fit: name modules, or null for all stages."
            )
        self.heads = Classifiers(student, self.settings.layers)

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        return {"ce_heads": cross_entropy(self.heads.logits(inputs.student.named), inputs.labels).sum()}
