"""EKD: evolutionary knowledge distillation, our reading of its abstract (arXiv 2103.13811)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from torch import Tensor, nn

from dkel_lightning.functional import at_least_float32, cross_entropy
from dkel_lightning.methods.base import Layers, Needs, register
from dkel_lightning.methods.distilling import Distilling, Distils, Weight
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.networks.adapters import check_pairs, maps_of
from dkel_lightning.networks.watching import Named
from dkel_lightning.settings.declarations import number, whole

_WHY = "ekd guides blocks"


class GuidedModule(nn.Module):
    """Make features u [B, width] and logits h [B, C] of maps: 1x1 convolution, BatchNorm, ReLU, pooling, linear."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        pooled = torch.relu(self.norm(self.conv(maps))).mean((2, 3))
        return pooled, self.head(pooled)


@dataclass(frozen=True)
class EKDSettings(Distils):
    """Settings of EKD; the teacher's lead is `teacher.init_steps`."""

    weight: Weight = 1.0
    feature_weight: Annotated[float, number("Weight of the guided modules' features.", 0, 1e6)] = 0.0
    width: Annotated[int, whole("Features of a guided module.", 1, 4096)] = 64
    layers: Layers = None
    teacher_layers: Layers = None


@register("ekd", teacher="online", peers=1)
class EKD(Distilling):
    """Evolutionary distillation (our reading): teacher and student from scratch together, guided block by block.

    Guided modules follow B corresponding blocks of teacher and student.

    `L_T = CE(t) + sum_b CE(h_b^T)`, and of each student
    `L_S = CE(z) + a KD(z, sg t) + sum_b [ CE(h_b^S) + KD(h_b^S, sg h_b^T) + m |u_b^S - sg u_b^T|^2 ]`.
    Detached: all outputs of the teacher. Deployed: the student, without guided modules.

    Source: only the paper's abstract could be read; formula, modules and weights are our reading.
    """

    Settings = EKDSettings
    needs = Needs(foreign_teacher=True)
    settings: EKDSettings
    # Labels, teacher, and the guided modules' labels, teacher, features; the teacher's labels.
    terms = ("ce", "kd", "ce_guided", "kd_guided", "features", "teacher_ce_guided")
    teacher_parts = ("guided_teacher",)

    layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    guided: nn.ModuleList
    guided_teacher: nn.ModuleList

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        assert teacher is not None
        self.layers, ours = maps_of(student, self.settings.layers, "method.layers", _WHY)
        self.teacher_layers, theirs = maps_of(teacher, self.settings.teacher_layers, "method.teacher_layers", _WHY)
        check_pairs(self.layers, self.teacher_layers, _WHY)
        self.guided_teacher = self._guides(theirs, 0, student.num_classes)  # drawn first, so equal for every student
        self.guided = nn.ModuleList(self._guides(ours, peer, student.num_classes) for peer in range(self.peers))

    def _guides(self, seen: Named, peer: int, classes: int) -> nn.ModuleList:
        return nn.ModuleList(
            GuidedModule(output[peer].shape[1], self.settings.width, classes) for output in seen.values()
        )

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        assert inputs.teacher is not None
        ours, theirs = inputs.named
        student, teacher = inputs.student.logits, inputs.teacher.logits
        guided = [
            _guided(guides, self.layers, ours, peer)
            for peer, guides in enumerate(cast("Iterable[nn.ModuleList]", self.guided))
        ]
        taught = [_guided(self.guided_teacher, self.teacher_layers, theirs, view) for view in range(len(teacher))]
        u, h = (torch.stack(outputs) for outputs in zip(*guided, strict=True))
        u_teacher, h_teacher = (torch.stack(outputs) for outputs in zip(*taught, strict=True))
        return self.terms_of(student, h, u, teacher, h_teacher, u_teacher, inputs.labels, inputs.classes)

    def terms_of(
        self,
        student: Tensor,
        h: Tensor,
        u: Tensor,
        teacher: Tensor,
        h_teacher: Tensor,
        u_teacher: Tensor,
        labels: Tensor,
        classes: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the terms of logits [P, B, C], h [P, b, B, C] and u [P, b, B, width]; the teacher's P may be 1."""
        distance = (at_least_float32(u) - at_least_float32(u_teacher).detach()).square().sum(-1).mean(-1)
        return {
            "ce": cross_entropy(student, labels).sum(),
            "kd": self.settings.weight * self.distil(student, teacher.detach(), classes).sum(),
            "ce_guided": cross_entropy(h, labels).sum(),
            "kd_guided": self.distil(h, h_teacher.detach(), classes).sum(),
            "features": self.settings.feature_weight * distance.sum(),
            # The mean over the views of the students, like the teacher's supervised loss.
            "teacher_ce_guided": cross_entropy(h_teacher, labels).mean(0).sum(),
        }


def _guided(guides: nn.ModuleList, layers: tuple[str, ...], named: Named, index: int) -> tuple[Tensor, Tensor]:
    """Pass what the blocks of one peer or view returned through their modules: u [b, B, width] and h [b, B, C]."""
    outputs = [guide(named[layer][index]) for guide, layer in zip(guides, layers, strict=True)]
    return torch.stack([u for u, _ in outputs]), torch.stack([h for _, h in outputs])
