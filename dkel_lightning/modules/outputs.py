"""Outputs of the networks and inputs of a method.

P peers, B samples, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from dkel_lightning.functional import classes_of
from dkel_lightning.networks import Named, PeerFeatures, PeerStages


@dataclass(frozen=True)
class StudentOutput:
    """The outputs of the student peers.

    Attributes:
        logits: [P, B, C].
        features: [P, B, D], the input of each peer's classifier; a tuple of [B, D_i] where widths differ.
        ensemble_logits: [B, C] of the ensemble classifier, or combined by the method; None without an ensemble.
        trunk: the trunk's outputs, P of [B, ...]; None unless the method asks for stages.
        maps: the last feature maps, P of [B, D', H', W']; None unless asked for, or if a network has none.
        named: outputs of the modules that the method watches (`network.watch`), P of [B, ...] each; else None.
    """

    logits: Tensor
    features: PeerFeatures
    ensemble_logits: Tensor | None = None
    trunk: tuple[Tensor, ...] | None = None
    maps: tuple[Tensor, ...] | None = None
    named: Named | None = None

    @classmethod
    def of(cls, stages: PeerStages) -> StudentOutput:
        """Build the output from that of the network."""
        return cls(stages.logits, stages.features, trunk=stages.trunk or None, maps=stages.maps, named=stages.named)

    def with_ensemble(self, ensemble_logits: Tensor) -> StudentOutput:
        """Return the same output with the ensemble's logits filled in."""
        return replace(self, ensemble_logits=ensemble_logits)


@dataclass(frozen=True)
class TeacherOutput:
    """The outputs of the teacher peers.

    Attributes:
        logits: [P, B, C]; [1, B, C] of a single teacher of all peers that see the same view. Without gradient unless
            the teacher's update is `gradient`; a method detaches its targets.
        features: as in StudentOutput.
        named: outputs of the modules that the method watches, one per row of logits; else None.
    """

    logits: Tensor
    features: PeerFeatures
    named: Named | None = None


@dataclass(frozen=True)
class MethodInputs:
    """The inputs of a method in one training step.

    Attributes:
        labels: [B] classes, -1 where not known, or float targets [B, C], or [P, B, C] where peers differ.
        student: the student peers, with the ensemble's logits where the method has an ensemble classifier.
        teacher: the teacher peers, None for a method without a teacher.
        assembled: [P, B, C], the assembled teacher logits of each peer, detached; None if the method uses none.
        ensemble_weight: scalar, the decaying weight v.
        indices: [B], positions of the samples in the training set; None if the data has none.
        raw_labels: the labels of the batch, before they were smoothed or weighted; None: as `labels`.
    """

    labels: Tensor
    student: StudentOutput
    teacher: TeacherOutput | None
    assembled: Tensor | None
    ensemble_weight: Tensor
    indices: Tensor | None = None
    raw_labels: Tensor | None = None

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
