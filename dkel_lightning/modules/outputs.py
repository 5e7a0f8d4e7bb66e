"""What the networks hand to each other and to a method: frozen, typed, with stated shapes.

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
        ensemble_logits: [B, C] of the ensemble classifier, or of what the method makes of its peers; None without.
        trunk: the trunk's outputs, P of [B, ...]; None unless the method asks for stages.
        maps: the last feature maps, P of [B, D', H', W']; None unless asked for, or where a network does not tell.
        named: outputs of the modules that the method has named by `network.watch`, P of [B, ...] each; else None.
    """

    logits: Tensor
    features: PeerFeatures
    ensemble_logits: Tensor | None = None
    trunk: tuple[Tensor, ...] | None = None
    maps: tuple[Tensor, ...] | None = None
    named: Named | None = None

    @classmethod
    def of(cls, seen: PeerStages) -> StudentOutput:
        """Take the outputs of a pass of the network."""
        return cls(seen.logits, seen.features, trunk=seen.trunk or None, maps=seen.maps, named=seen.named)

    def with_ensemble(self, ensemble_logits: Tensor) -> StudentOutput:
        """Return the same output with the ensemble's logits filled in."""
        return replace(self, ensemble_logits=ensemble_logits)


@dataclass(frozen=True)
class TeacherOutput:
    """The outputs of the teacher peers.

    Attributes:
        logits: [P, B, C]; of a teacher that all peers share [1, B, C], or [P, B, C] where it has classified the view
            of each; without gradient unless the teacher's update is `gradient`. A method detaches what it
            teaches with.
        features: as in StudentOutput.
        named: outputs of the modules that the method has named by `network.watch`, by name: as many as there are
            logits; else None.
    """

    logits: Tensor
    features: PeerFeatures
    named: Named | None = None


@dataclass(frozen=True)
class MethodInputs:
    """The inputs of a method in one training step.

    Attributes:
        labels: what the losses on labels take: [B] classes, or float targets [B, C], or [P, B, C] where peers differ.
        student: the student peers, with the ensemble's logits where the method has an ensemble classifier.
        teacher: the teacher peers, None for a method without a teacher.
        assembled: [P, B, C], the teachers' knowledge assembled for each peer, detached; None where not asked for.
        ensemble_weight: scalar, the decaying weight v.
        indices: [B], positions of the samples in the training set; None where the data does not tell.
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
        """The class of each sample, [B]; of labels that are distributions the largest, of the peers' their mean's."""
        labels = self.labels if self.raw_labels is None else self.raw_labels
        return classes_of(labels.mean(0) if labels.dim() == 3 else labels)


@dataclass(frozen=True)
class StepResult:
    """What one training step has computed.

    Attributes:
        inputs: of the method.
        terms: the loss terms, scalars.
        values: the same stacked in the method's order, detached.
        loss: their sum, and the teacher's own where it learns.
        correct: right predictions of each student peer, [P].
        nll: its negative log-likelihood, summed over the batch, [P].
    """

    inputs: MethodInputs
    terms: Mapping[str, Tensor]
    values: Tensor
    loss: Tensor
    correct: Tensor
    nll: Tensor


@dataclass(frozen=True)
class Evaluated:
    """The outputs of all members for an evaluation batch.

    Attributes:
        logits: [N, B, C], float32, in the order of `scores.members`.
        features: [B, D_i] of each student peer, then of each teacher peer.
    """

    logits: Tensor
    features: tuple[Tensor, ...]
