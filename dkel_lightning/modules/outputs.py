"""The inputs of a method.

P peers, B samples, C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dkel_lightning.functional import classes_of
from dkel_lightning.networks import PeerOutputs
from dkel_lightning.networks.watching import Named


@dataclass(frozen=True)
class MethodInputs:
    """The inputs of a method in one training step.

    Attributes:
        labels: classes [B], -1 where not known, or float targets [B, C].
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
        """The class of each sample, [B]: the argmax of labels that are distributions."""
        return classes_of(self.labels if self.raw_labels is None else self.raw_labels)
