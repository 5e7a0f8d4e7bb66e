"""The inputs of a method, and the results of a training step and of an evaluation.

P peers, B samples, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dkel_lightning.functional import classes_of
from dkel_lightning.networks import Named, PeerOutputs


@dataclass(frozen=True)
class MethodInputs:
    """The inputs of a method in one training step.

    Attributes:
        labels: [B] classes, -1 where not known, or float targets [B, C], or [P, B, C] where peers differ.
        student: the outputs of the student peers.
        teacher: the outputs of the teacher peers; None without a teacher. A single teacher of all peers gives logits
            [1, B, C], or [P, B, C] where the peers see different views. They have no gradient unless the teacher's
            update is `gradient`, so a method detaches its targets.
        indices: [B], positions of the samples in the training set; None if the data has none.
        raw_labels: the labels of the batch, before they were smoothed or weighted; None: as `labels`.
    """

    labels: Tensor
    student: PeerOutputs
    teacher: PeerOutputs | None
    indices: Tensor | None = None
    raw_labels: Tensor | None = None

    @property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits, detached."""
        assert self.teacher is not None
        return self.teacher.logits.detach()

    @property
    def named(self) -> tuple[Named, Named]:
        """The outputs of modules that the method watches, of the student and of the teacher."""
        assert self.teacher is not None
        assert self.student.named is not None
        assert self.teacher.named is not None
        return self.student.named, self.teacher.named

    @property
    def classes(self) -> Tensor:
        """The class of each sample, [B]: the argmax of labels that are distributions, averaged over peers."""
        labels = self.labels if self.raw_labels is None else self.raw_labels
        return classes_of(labels.mean(0) if labels.dim() == 3 else labels)


@dataclass(frozen=True)
class StepResult:
    """The result of one training step.

    Attributes:
        inputs: of the method.
        terms: the loss terms, scalars.
        values: the terms stacked in the method's order, detached.
        loss: their sum, and the supervised loss of a teacher that learns.
        correct: right predictions of each student peer, [P].
        nll: negative log-likelihood of each student peer, summed over the batch, [P].
        samples: those whose label is known, which `correct` and `nll` are of, a scalar.
    """

    inputs: MethodInputs
    terms: Mapping[str, Tensor]
    values: Tensor
    loss: Tensor
    correct: Tensor
    nll: Tensor
    samples: Tensor


@dataclass(frozen=True)
class Evaluated:
    """The outputs of all members for an evaluation batch.

    Attributes:
        logits: [N, B, C], float32, in the order of `scores.members`.
        features: [B, D_i] of each student peer, then of each teacher peer.
    """

    logits: Tensor
    features: tuple[Tensor, ...]
