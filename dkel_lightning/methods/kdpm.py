"""KDPM: one teacher and several students that also teach each other (Niyaz & Bathula, arXiv 2110.11023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import at_least_float32, cross_entropy
from dkel_lightning.methods.base import Needs, register
from dkel_lightning.methods.distilling import Distilling, Distils, Weight
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.networks.adapters import adapter, at_common_size
from dkel_lightning.networks.watching import stages_of
from dkel_lightning.settings.declarations import choice, number, several, text


@dataclass(frozen=True)
class KDPMSettings(Distils):
    """Settings of KDPM."""

    ce_weight: Annotated[float, number("Weight of the labels.", 0, 1e6)] = 1.0
    weight: Weight = 1.0
    peer_weight: Annotated[float, number("Weight of the distillation from the other students.", 0, 1e6)] = 1.0
    channels: Annotated[
        tuple[str, ...] | None,
        several(
            "What each student learns from in the teacher; null: logits.",
            choice("", "logits", "features", "both"),
        ),
    ] = None
    layer: Annotated[str | None, text("Module of the student with the features; null: its last stage.")] = None
    teacher_layer: Annotated[str | None, text("Module of the teacher with the features; null: its last stage.")] = None


@register("kdpm", teacher="online", peers=2, sharing="nothing", views="shared")
class KDPM(Distilling):
    """One teacher that learns online, and students that learn from it and from each other.

    `L_k = a CE(z_k) + b KD(z_k, sg t; T) + g mean_{l != k} KD(z_k, sg z_l; T)`, and the teacher's own `CE(t)`.

    The channel of a student is the teacher's logits, its feature maps, or both. For maps, the mean squared distance to
    the adapted maps of the student replaces the KD, with weight b. Detached: all targets. Deployed: a student.

    Source: the shape of the paper's abstract and of its successor's (2212.02931); the weights are neutral, ours.
    """

    Settings = KDPMSettings
    needs = Needs(foreign_teacher=True)
    settings: KDPMSettings

    def __init__(self, peers: int, settings: KDPMSettings | None = None) -> None:
        super().__init__(peers, settings)
        self.channels = self.settings.channels or ("logits",) * peers
        if len(self.channels) != peers:
            raise ConfigError(f"method.channels has {len(self.channels)} entries for {peers} peers: give one for each.")
        self.of_logits = [peer for peer, channel in enumerate(self.channels) if channel != "features"]
        self.of_features = [peer for peer, channel in enumerate(self.channels) if channel != "logits"]
        self.adapters = nn.ModuleList()

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        assert teacher is not None
        if self.of_features:
            self.layer, shapes = _watched(student, self.settings.layer, "method.layer")
            self.teacher_layer, (shape, *_) = _watched(teacher, self.settings.teacher_layer, "method.teacher_layer")
            what = f"{self.layer} of the student and {self.teacher_layer} of the teacher"
            for peer in self.of_features:
                self.adapters.append(adapter(shapes[peer], shape, what))

    @property
    def terms(self) -> tuple[str, ...]:
        return ("ce", "kd", *(["features"] if self.of_features else []), *(["kd_peers"] if self.peers > 1 else []))

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        logits, settings = inputs.student.logits, self.settings
        taught = inputs.teacher_logits.expand_as(logits)
        distilled = logits.new_zeros(())
        if self.of_logits:
            # No indexing by a list, which copies that from the host in every step.
            ours, theirs = (torch.stack([of[peer] for peer in self.of_logits]) for of in (logits, taught))
            distilled = self.distil(ours, theirs, inputs.classes).sum()
        terms = {
            "ce": settings.ce_weight * cross_entropy(logits, inputs.labels).sum(),
            "kd": settings.weight * distilled,
        }
        if self.of_features:
            terms["features"] = settings.weight * self._features(inputs)
        if self.peers > 1:
            mutual = self.distil_from_each(logits, logits.detach(), inputs.classes)
            terms["kd_peers"] = settings.peer_weight * mutual.sum()
        return terms

    def _features(self, inputs: MethodInputs) -> Tensor:
        ours, theirs = inputs.named
        total = inputs.student.logits.new_zeros(())
        for peer, adapt in zip(self.of_features, self.adapters, strict=True):
            maps = theirs[self.teacher_layer]
            pair = at_common_size(adapt(ours[self.layer][peer]), maps[peer if len(maps) > 1 else 0].detach())
            total = total + F.mse_loss(at_least_float32(pair[0]), at_least_float32(pair[1]))
        return total


def _watched(network: PeerNetwork, layer: str | None, setting: str) -> tuple[str, list[Size]]:
    """Watch a module, by default the last stage; return its name and the shape of its output for each peer."""
    layer = layer or stages_of(network.peer(0), setting)[-1]
    return layer, [output.shape for output in network.watch([layer], setting)[layer]]
