"""Channels of the teacher rearranged for this student (Han et al., arXiv 2103.16844)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dkel_lightning.data.batch import Batch
from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.functional import at_least_float32, cross_entropy, one_hot
from dkel_lightning.methods.base import Draw, Layers, Needs, register
from dkel_lightning.methods.distilling import Distilling, Distils, Temperature, Weight
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.networks.adapters import at_common_size, check_pairs, maps_of
from dkel_lightning.runtime.processes import average_over_processes
from dkel_lightning.schedules import Clock
from dkel_lightning.settings.declarations import choice, number, whole

_WHY = "consistent compares maps"


@dataclass(frozen=True)
class ConsistentSettings(Distils):
    """Settings of the consistent teacher."""

    weight: Weight = 1.0
    kd_weight: Annotated[float, number("Weight of the teacher's logits.", 0, 1e6)] = 0.0
    temperature: Temperature = 4.0
    matcher: Annotated[str, choice("How the teacher's channels are assigned.", "hungarian", "greedy")] = "hungarian"
    group: Annotated[str, choice("How several channels for one place are combined.", "mean", "max")] = "mean"
    fit_batches: Annotated[int, whole("Batches on which the assignment is fitted.", 1, 100_000)] = 20
    refit_epochs: Annotated[int, whole("Epochs between fits; 0: only before the first step.", 0, 1_000_000)] = 0
    layers: Layers = None
    teacher_layers: Layers = None


@register("consistent", teacher="frozen", peers=1)
class Consistent(Distilling):
    """The channels of a frozen teacher are rearranged for this student before their maps are compared.

    `L = CE(z) + b sum_pairs mean |N(F_S) - N(perm(sg F_T))|^2 + a KD(z, sg t; T)`, N per-sample L2 normalisation.

    perm assigns to each channel of the student the teacher's channel (or the average of several) with the most similar
    profile over the classes: means by class over batches in eval mode, standardised, matched by their products. It is
    fitted to the student before the first step, and again every `refit_epochs`. Detached: the teacher. Deployed: the
    student.

    Source: idea and moment of the fit are the paper's; the matching and the weights are our reading.
    """

    Settings = ConsistentSettings
    needs = Needs(foreign_teacher=True, maximum_peers=1, batches=True)
    settings: ConsistentSettings

    fitted: Tensor

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        assert teacher is not None
        self.layers, maps = maps_of(student, self.settings.layers, "method.layers", _WHY)
        self.teacher_layers, targets = maps_of(teacher, self.settings.teacher_layers, "method.teacher_layers", _WHY)
        check_pairs(self.layers, self.teacher_layers, "consistent compares layers")
        for index, pair in enumerate(zip(maps.values(), targets.values(), strict=True)):
            ours, theirs = (outputs[0].shape[1] for outputs in pair)
            if max(ours, theirs) % min(ours, theirs):
                raise ConfigError(
                    f"{self.layers[index]} of the student has {ours} channels, {self.teacher_layers[index]} of the "
                    f"teacher {theirs}, and neither is a multiple of the other: name other layers."
                )
            self.register_buffer(f"places_{index}", natural(ours, theirs))
        self.register_buffer("fitted", torch.tensor(False))

    def on_epoch_start(self, student: StudentModule, teacher: TeacherModule | None, clock: Clock, draw: Draw) -> None:
        every = self.settings.refit_epochs
        again = every > 0 and clock.epoch > 0 and clock.epoch % every == 0
        if again or not bool(self.fitted):
            assert teacher is not None
            self.fit(student, teacher, draw(self.settings.fit_batches))

    @torch.no_grad()
    def fit(self, student: StudentModule, teacher: TeacherModule, batches: Iterable[Batch]) -> None:
        """Assign the channels by their mean outputs for each class over `batches`."""
        modes = [(part, part.training) for part in (student, teacher)]
        for part, _ in modes:
            part.eval()
        classes = student.num_classes
        sums = [[torch.zeros(0)] * len(self.layers) for _ in range(2)]
        counts = torch.zeros(classes, dtype=torch.float64, device=self.fitted.device)
        for batch in batches:
            onehot = one_hot(batch.labels, classes).double()
            counts += onehot.sum(0)
            ours, theirs = student(batch.views).named, teacher.teach(batch.views).named
            assert ours is not None
            assert theirs is not None
            for totals, outputs, layers in ((sums[0], ours, self.layers), (sums[1], theirs, self.teacher_layers)):
                for index, layer in enumerate(layers):
                    profile = outputs[layer][0].double().mean((2, 3)).t() @ onehot  # [channels, K]
                    totals[index] = profile if len(totals[index]) == 0 else totals[index] + profile
        for part, training in modes:
            part.train(training)
        average_over_processes([counts, *sums[0], *sums[1]])
        present = counts > 0
        if not bool(present.any()):
            raise DataError(
                "consistent pairs channels by class, and no label of the images that it is fitted on is known (all "
                "are -1): raise method.fit_batches, or choose another method."
            )
        for index, (ours_, theirs_) in enumerate(zip(*sums, strict=True)):
            profiles = [(total[:, present] / counts[present]).cpu() for total in (ours_, theirs_)]
            places = MATCHERS[self.settings.matcher](similarity(profiles[0], profiles[1]))
            getattr(self, f"places_{index}").copy_(places)
        self.fitted.fill_(True)

    @property
    def terms(self) -> tuple[str, ...]:
        return ("ce", "features", *(["kd"] if self.settings.kd_weight > 0 else []))

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        logits, settings = inputs.student.logits, self.settings
        terms = {"ce": cross_entropy(logits, inputs.labels).sum(), "features": settings.weight * self._features(inputs)}
        if settings.kd_weight > 0:
            taught = self.distil(logits, inputs.teacher_logits, inputs.classes)
            terms["kd"] = settings.kd_weight * taught.sum()
        return terms

    def _features(self, inputs: MethodInputs) -> Tensor:
        ours, theirs = inputs.named
        total = inputs.student.logits.new_zeros(())
        for index, (layer, teacher_layer) in enumerate(zip(self.layers, self.teacher_layers, strict=True)):
            maps = at_least_float32(theirs[teacher_layer][0].detach())
            maps = rearranged(maps, getattr(self, f"places_{index}"), self.settings.group)
            total = total + feature_loss(*at_common_size(at_least_float32(ours[layer][0]), maps))
        return total


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Average the squared distance of maps [B, C, H, W] over the batch, each divided by its L2 norm."""
    ours, theirs = (F.normalize(maps.flatten(1), dim=1) for maps in (student, teacher))
    return (ours - theirs).square().sum(1).mean()


def rearranged(maps: Tensor, places: Tensor, group: str = "mean") -> Tensor:
    """Rearrange channels [B, C_T, H, W] by `places` [C_S, r]: r channels of a group become their mean, or their max."""
    grouped = maps[:, places.flatten()].view(len(maps), *places.shape, *maps.shape[2:])
    return grouped.amax(2) if group == "max" else grouped.mean(2)


def natural(student: int, teacher: int) -> Tensor:
    """Return the places [C_S, r] before any fit: consecutive groups, or each channel of the teacher repeated."""
    if teacher >= student:
        return torch.arange(teacher).view(student, -1)
    return (torch.arange(student) // (student // teacher)).view(-1, 1)


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Multiply profiles [C_S, K] and [C_T, K], each row standardised with divisor K: [C_S, C_T]."""
    centred = [rows - rows.mean(1, keepdim=True) for rows in (student, teacher)]
    ours, theirs = (rows / rows.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12) for rows in centred)
    return ours @ theirs.t()


def hungarian(similar: Tensor) -> Tensor:
    """Maximise the sum of similarities [C_S, C_T] over assignments of channels: places [C_S, r], sorted."""
    student, teacher = similar.shape
    students, teachers = max(1, teacher // student), max(1, student // teacher)
    wide = similar.double().repeat_interleave(students, 0).repeat_interleave(teachers, 1).numpy()
    _, columns = linear_sum_assignment(-wide)
    return torch.from_numpy(columns // teachers).view(student, -1).sort(1).values


def greedy(similar: Tensor) -> Tensor:
    """Assign the largest remaining similarity [C_S, C_T] first: places [C_S, r], sorted."""
    student, teacher = similar.shape
    left = similar.double().numpy().copy()
    per_student, per_teacher = max(1, teacher // student), max(1, student // teacher)
    places: list[list[int]] = [[] for _ in range(student)]
    taken = [0] * teacher
    for _ in range(max(student, teacher)):
        row, column = map(int, np.unravel_index(np.argmax(left), left.shape))
        places[row].append(column)
        taken[column] += 1
        left[row, column] = -np.inf
        if len(places[row]) == per_student:
            left[row] = -np.inf
        if taken[column] == per_teacher:
            left[:, column] = -np.inf
    return torch.tensor(places).sort(1).values


MATCHERS: dict[str, Callable[[Tensor], Tensor]] = {"hungarian": hungarian, "greedy": greedy}
