"""SoTeacher: how a student-oriented teacher is trained (Dong, Liu & Shang, ICLR 2024, arXiv 2206.06661)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dkel_lightning.errors import ConfigError, DataError
from dkel_lightning.functional import at_least_float32, cross_entropy, not_halved
from dkel_lightning.methods.base import STUDENT, Draw, Method, MethodSettings, Needs, register
from dkel_lightning.modules.outputs import MethodInputs
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.networks import PeerNetwork
from dkel_lightning.runtime.processes import average_over_processes, world_size
from dkel_lightning.schedules import CONSISTENCY_RAMPS, Clock, consistency_ramp
from dkel_lightning.settings.declarations import TIME, choice, number, whole


@dataclass(frozen=True)
class SoTeacherSettings(MethodSettings):
    """Settings of a student-oriented teacher."""

    lipschitz_weight: Annotated[float, number("Weight of the layers' Lipschitz constants.", 0, 1e6)] = 1e-5
    consistency_weight: Annotated[float, number("c_max, the consistency's weight at the end.", 0, 1e6)] = 1.0
    ramp: Annotated[str, choice("Form of c(e) on its way to c_max.", *CONSISTENCY_RAMPS)] = "linear"
    ramp_start: Annotated[float, number("Epoch from which the consistency counts with ramp=step.", 0, TIME)] = 50
    counter: Annotated[str, choice("Visits of a sample: its own, or 0, 2, 3, ... by epoch.", "uniform", "released")] = (
        "uniform"
    )
    samples: Annotated[
        int | None, whole("Training samples that are remembered; null: those of the data.", 1, 10**9)
    ] = None


@register("soteacher", peers=1)
class SoTeacher(Method):
    """A student-oriented teacher: smooth, and consistent with itself over time (teacher.training=soteacher).

    `L = CE(z) + a_lip Lip + c(e) mean_n |softmax(z_n) - S_n|^2`.

    Lip sums over layers the L1 norm of a convolution, the largest |gamma| / sqrt(running variance + eps) of a
    BatchNorm, the largest L1 norm of a column of a linear layer. S_n is the mean output of the network for sample n so
    far: `S_n <- (1 - tau) S_n + tau p_n` after the term is taken. `c(e) = c_max (e + 1) / epochs`, and 0 in
    epoch 0, or another ramp. Detached: S and the running variance. Deployed: the network, from which any method then
    distils.

    With several processes, each updates the samples it sees, and the memories are merged after each epoch.

    Source: released code 0148005 (MIT); a counter for each sample (`uniform`) is ours, its own counts 0, 2, 3, ...
    """

    Settings = SoTeacherSettings
    needs = Needs(teacher=False, maximum_peers=1, batches=True, deploy=STUDENT)
    settings: SoTeacherSettings
    terms = ("ce", "lipschitz", "consistency")  # labels, Lipschitz constants, consistency
    process_buffers: ClassVar[tuple[str, ...]] = ("memory", "visits", "written")

    memory: Tensor
    visits: Tensor
    written: Tensor
    coefficient: Tensor
    rate: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> SoTeacher:
        """Keep the memory out of half types, in which counts end at 256."""
        kept = {name: buffer for name, buffer in self.named_buffers(recurse=False) if name in self.process_buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            setattr(self, name, not_halved(fn)(buffer))
        return self

    def attach(self, student: PeerNetwork, teacher: PeerNetwork | None = None) -> None:
        samples = self.settings.samples
        if samples is None:
            raise ConfigError("soteacher keeps a memory of each training sample: set method.samples to their number.")
        self._layers: list[nn.Module] = [layer for layer in student.modules() if not list(layer.children())]
        self.register_buffer("memory", torch.zeros(samples, student.num_classes))
        self.register_buffer("visits", torch.zeros(samples))
        self.register_buffer("written", torch.zeros(samples))
        self.register_buffer("coefficient", torch.zeros(()))
        self.register_buffer("rate", torch.ones(()))

    def set_time(self, clock: Clock) -> None:
        super().set_time(clock)
        if clock.steps is None:
            raise ConfigError("soteacher's consistency grows to the end of the run: set max_epochs or max_steps.")
        epochs = clock.steps / clock.steps_per_epoch
        settings = self.settings
        ramp = consistency_ramp(settings.ramp, clock.epoch, epochs, settings.ramp_start)
        self.coefficient.fill_(settings.consistency_weight * ramp)
        self.rate.fill_(1 / (1 + released_count(clock.epoch)))

    @torch.no_grad()
    def on_epoch_end(self, student: StudentModule, teacher: TeacherModule | None, clock: Clock, draw: Draw) -> None:
        if world_size() == 1:
            return
        for buffer in (self.memory, self.visits):
            weight = self.written.clone() if buffer.dim() == 1 else self.written.unsqueeze(1).clone()
            total = buffer * weight
            average_over_processes([total, weight])
            buffer.copy_(torch.where(weight > 0, total / weight.clamp_min(1e-12), buffer))
        self.written.zero_()

    def current_weights(self) -> dict[str, Tensor]:
        return {**super().current_weights(), "consistency": self.coefficient}

    def loss_terms(self, inputs: MethodInputs) -> dict[str, Tensor]:
        if inputs.indices is None:
            raise DataError(
                "soteacher needs the index of each sample: wrap the data set, dkel_lightning.data.WithIndices(data), "
                "or return (images, labels, indices), and leave out targets.mixup and targets.cutmix."
            )
        logits = inputs.student.logits[0]
        distance = self.consistency(logits, inputs.indices)
        return {
            "ce": cross_entropy(logits, inputs.labels),
            "lipschitz": self.settings.lipschitz_weight * lipschitz(self._layers),
            "consistency": self.coefficient * distance,
        }

    def consistency(self, logits: Tensor, indices: Tensor) -> Tensor:
        """Return the mean squared distance of softmax(logits) [B, C] to the memory of `indices` [B]; remember them."""
        probabilities = at_least_float32(logits).softmax(-1)
        # A sample that is drawn twice writes the mean of both, and counts twice.
        first = (indices.unsqueeze(1) == indices).int().argmax(1)
        ones = torch.ones_like(probabilities[:, :1])
        times = torch.zeros_like(ones).index_add_(0, first, ones)[first]
        of_sample = torch.zeros_like(probabilities).index_add_(0, first, probabilities.detach())[first] / times
        memory, visits = self.memory[indices], self.visits[indices].unsqueeze(1)
        distance = (probabilities - memory).square().sum(-1)
        if self.settings.counter == "uniform":
            distance = distance * (visits.squeeze(1) > 0)  # a new sample has no memory
            rate = times / (times + visits)
        else:
            rate = self.rate
        with torch.no_grad():
            self.memory.index_copy_(0, indices, ((1 - rate) * memory + rate * of_sample).to(self.memory.dtype))
            self.visits.index_copy_(0, indices, (visits + times).squeeze(1).to(self.visits.dtype))
            self.written.index_fill_(0, indices, 1.0)
        return distance.mean()


def lipschitz(layers: Iterable[nn.Module]) -> Tensor:
    """Sum the bounds of layers' Lipschitz constants, in float32 or better.

    Source: SoTeacher, released code.
    """
    norms = []
    for layer in layers:
        weight = getattr(layer, "weight", None)
        if weight is None:
            continue
        weight = at_least_float32(weight)
        if isinstance(layer, _ConvNd):
            norms.append(weight.abs().sum())
        elif isinstance(layer, nn.Linear):
            norms.append(weight.abs().sum(0).max())
        elif isinstance(layer, _BatchNorm) and layer.running_var is not None:
            norms.append((weight.abs() / (layer.running_var.detach() + layer.eps).sqrt()).max())
    return torch.stack(norms).sum()


def released_count(epoch: int) -> int:
    """Count the visits of every sample as the released code does: 0, 2, 3, ..."""
    return epoch + 1 if epoch > 0 else 0
