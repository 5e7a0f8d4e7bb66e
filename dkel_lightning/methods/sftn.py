"""SFTN: student-friendly teacher networks (Park et al., NeurIPS 2021, arXiv 2102.07650): the teacher's own training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import cross_entropy, distillation
from dkel_lightning.methods.base import STUDENT, Layers, Method, MethodSettings, Needs, register
from dkel_lightning.methods.distilling import Temperature
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerNetwork, SinglePeer, create
from dkel_lightning.networks.adapters import adapter
from dkel_lightning.networks.watching import layers_of, stages_of
from dkel_lightning.settings.declarations import number, text


@dataclass(frozen=True)
class SFTNSettings(MethodSettings):
    """Settings of a student-friendly teacher."""

    student: Annotated[str | None, text("Backbone of the student; its blocks become branches of the teacher.")] = None
    ce_weight: Annotated[float, number("Weight of the labels.", 0, 1e6)] = 1.0
    kl_weight: Annotated[float, number("Weight of the divergence of trunk and branches.", 0, 1e6)] = 3.0
    branch_weight: Annotated[float, number("Weight of the branches' labels.", 0, 1e6)] = 1.0
    temperature: Temperature = 1.0
    layers: Layers = None


@register("sftn", peers=1)
class SFTN(Method):
    """A student-friendly teacher: it is trained with branches of its student's blocks (teacher.training=sftn).

    `L = l_T CE(z) + l_KL sum_r KD(z_r, z; T) + l_CE sum_r CE(z_r)`.

    After each stage r but the last hangs a branch: a layer to the width of the student's stage r, then the student's
    stages r + 1 to the end with a classifier. Nothing is detached: the KL moves trunk and branch towards each other.
    Deployed: the trunk, an ordinary network without branches, from which any method then distils.

    Source: names of the terms and structure from a summary of the paper; l_T = 1, l_KL = 3, l_CE = 1, T = 1 and that
    branches share nothing are recollection or reading.
    """

    Settings = SFTNSettings
    needs = Needs(teacher=False, maximum_peers=1, deploy=STUDENT)
    settings: SFTNSettings
    terms = ("ce", "kd_branches", "ce_branches")  # labels, the trunk to its branches and back, the branches' labels

    branches: nn.ModuleList

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        if self.settings.student is None:
            raise ConfigError("sftn attaches blocks of the student to its teacher: set method.student to its backbone.")
        trunk, pupil = student, self._pupil(student)  # the network that learns here is the teacher of a later stage
        layers = layers_of(trunk.peer(0), self.settings.layers, "method.layers")
        stages = stages_of(pupil.peer(0), "method.student")
        if len(layers) != len(stages):
            raise ConfigError(
                f"sftn pairs stages, and the teacher has {len(layers)} ({', '.join(layers)}), {self.settings.student} "
                f"{len(stages)} ({', '.join(stages)}): give method.layers as many modules of the teacher."
            )
        self.layers = layers[:-1]  # only a classifier would follow the last stage
        seen, expected = trunk.watch(self.layers, "method.layers"), pupil.watch(stages, "method.student")
        self.branches = nn.ModuleList()
        for layer, stage in zip(self.layers, stages, strict=False):
            first = adapter(seen[layer][0].shape, expected[stage][0].shape, f"{layer} of the teacher")
            self.branches.append(nn.Sequential(first, *_blocks_after(self._pupil(trunk), stage)))

    def _pupil(self, trunk: PeerNetwork) -> PeerNetwork:
        channels, *size = trunk.image_shape
        name = str(self.settings.student)
        return create(name, trunk.num_classes, 1, in_channels=channels, image_size=(size[0], size[1]))

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        named = inputs.student.named
        assert named is not None
        pairs = zip(self.branches, self.layers, strict=True)
        branches = torch.stack([branch(named[layer][0]) for branch, layer in pairs])
        return self.terms_of(inputs.student.logits[0], branches, inputs.labels)

    def terms_of(self, trunk: Tensor, branches: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the terms of logits [B, C] and [R, B, C], weighted."""
        settings = self.settings
        return {
            "ce": settings.ce_weight * cross_entropy(trunk, labels),
            "kd_branches": settings.kl_weight * distillation(branches, trunk, settings.temperature).sum(),
            "ce_branches": settings.branch_weight * cross_entropy(branches, labels).sum(),
        }


def _blocks_after(student: PeerNetwork, stage: str) -> list[nn.Module]:
    """List what a registered backbone does after a stage, in order."""
    peer = student.peer(0)
    assert isinstance(peer, SinglePeer)
    parts = {**dict(peer.trunk.named_children()), **dict(peer.branch.body.named_children())}
    names = list(parts)
    return [*(parts[name] for name in names[names.index(stage) + 1 :]), peer.branch.classifier]
