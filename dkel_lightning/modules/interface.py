"""What others may ask of the coordinator, so that callbacks, execution and assembly need not import it.

An abstract LightningModule rather than a typing.Protocol: a Protocol cannot derive from a LightningModule, whose
`trainer`, `log` and `device` everybody here asks for, and `isinstance` would compare names only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from dkel_lightning.errors import ConfigError
from dkel_lightning.functional import not_halved
from dkel_lightning.metrics import CalibrationErrors, Confusion, Disagreement, NetworkScores, Predictions, TermMeans
from dkel_lightning.modules.batch import Batch, renamed
from dkel_lightning.modules.ensemble import EnsembleModule
from dkel_lightning.modules.outputs import MethodInputs, StepResult, StudentOutput
from dkel_lightning.modules.peers import PeersModule
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.targets import TargetMaker
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.runtime.seeding import generator
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.execution import Execution

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Called once a view: uint8 or float images [B, C, H, W] and the generator to draw from -> one view of them."""
Observer = Callable[[MethodInputs, Mapping[str, Tensor], Tensor], None]
"""Called in a training step with its inputs, terms and loss, before the backward pass."""
Reader = Callable[[Mapping[str, Tensor], Tensor], None]
"""Called with the terms and the loss of every step, without gradient."""


class Coordinator(LightningModule):
    """Student, teacher, ensemble and method, trained together. `DistillationModule` is the one that ships.

    Attributes:
        members: names of all that is scored: student peers, their mean, the ensemble, and the same of the teacher.
        recipe: primitives from which the networks are rebuilt; None for parts put together by hand.
        validation_accuracy: [N] of the members in the last validation; chooses the deployed peer. A buffer.
        tested_confusion: of the deployed member in the last test: rows are true classes, columns predicted ones.
        scores: of a validation or test.
        predictions: of all members in a validation.
        observers: called in each training step with its inputs, terms and loss.
        readers: called in each training step with its terms and loss.
        num_views: the views that the augmentation makes of an image.
        batch_keys: what images, labels and indices are called in batches that are mappings; empty: as usual.
        lr: the learning rate of all groups, before their factors; None: the optimizer's own. `Tuner.lr_find` sets it.
    """

    student: StudentModule
    teacher: TeacherModule | None
    ensemble: EnsembleModule | None
    method: Any  # a methods.Method, which stands on the floor above
    execution: Execution
    deployment: Deploy
    augmentation: Augmentation | None
    num_views: int
    targets: TargetMaker
    seed: int
    recipe: dict[str, Any] | None
    members: tuple[str, ...]
    validation_accuracy: Tensor
    tested_confusion: Tensor | None
    term_means: TermMeans
    train_scores: NetworkScores
    scores: NetworkScores
    predictions: Predictions
    calibration: CalibrationErrors
    disagreement: Disagreement
    confusion: Confusion
    tested_member: int
    observers: list[Observer]
    readers: list[Reader]
    batch_keys: Mapping[str, str] = MappingProxyType({})
    lr: float | None = None
    _ddp_params_and_buffers_to_ignore: list[str]

    def _apply(self, fn: Any, recurse: bool = True) -> Coordinator:
        """Keep the scores that choose a peer out of half types, in which many are equal."""
        accuracy = self.validation_accuracy
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.validation_accuracy = not_halved(fn)(accuracy)
        return self

    @property
    def is_attached(self) -> bool:
        """Whether a Trainer drives the module."""
        return self._trainer is not None

    @property
    def backbone(self) -> nn.Module:
        """The trunk that the student's peers share, which Lightning's BackboneFinetuning freezes at first.

        Raises:
            ConfigError: they share nothing.
        """
        return self.student.network.shared_part()

    def read(self, batch: Any) -> Any:
        """Give a mapping the usual names; no hook of Lightning's, which would stand for that of the user's data."""
        return renamed(batch, self.batch_keys)

    @abstractmethod
    def forward(self, views: Tensor) -> StudentOutput:
        """Classify `views` [B, V, C, H, W] or [B, C, H, W] with the student peers and their ensemble."""

    def views_of_each(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return the views of the student and those of the teacher: the same ones, or each its half of 2 P."""
        peers = self.student.num_peers
        if self.method.needs.teacher_views and views.dim() == 5 and views.shape[1] == 2 * peers:
            return views[:, :peers], views[:, peers:]
        return views, views

    def make_batch(self, batch: Batch, *key: int | str) -> Batch:
        """Make the views of a batch, and mix them and its labels where that is asked for; drawn from (seed, key)."""
        return self.targets.mixed(batch._replace(views=self.make_views(batch.views, *key)), self.seed, *key)

    def make_views(self, images: Tensor, *key: int | str) -> Tensor:
        """Augment images [B, C, H, W] once for each view, [B, V, C, H, W], drawn from (seed, key).

        Without an augmentation, or given views already, they are returned as they are.

        Raises:
            ConfigError: the augmentation returns something else.
        """
        if self.augmentation is None or images.dim() != 4:
            return images
        drawn = generator(self.seed, "views", *key, device=images.device)
        views = [self.augmentation(images, drawn) for _ in range(self.num_views)]
        if not isinstance(views[0], Tensor):
            raise ConfigError(
                f"augmentation(images, generator) gives a {type(views[0]).__name__} in place of images: where it is a "
                "transform of torchvision, pass lambda images, generator: transform(images)."
            )
        return torch.stack(views, dim=1)

    @abstractmethod
    def compute_step(self, batch: Batch) -> StepResult:
        """Compute all of a training step that lies before its gradients; a function of tensors alone."""

    @property
    def peers_modules(self) -> list[PeersModule]:
        """The student and, if there is one, the teacher."""
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def follow(self) -> None:
        """Let the teacher follow, after an optimizer step."""
        if self.teacher is not None:
            self.teacher.follow(self.student.network)

    @abstractmethod
    def member_logits(self, views: Tensor) -> Tensor:
        """Stack the logits of all `members`, [N, B, C]."""

    def to_onnx(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to export the training.

        Raises:
            ConfigError: with what exports the deployed network.
        """
        raise ConfigError(
            "A DistillationModule is a training, and what is exported is the network that it deploys: use "
            'dkel_lightning.export.export(module, folder, preprocessing, format="onnx"), which checks the file '
            "(docs/export.md), or torch.onnx.export(module.deploy(), (images,), file)."
        )

    to_torchscript = to_tensorrt = to_onnx


def coordinator(module: LightningModule) -> Coordinator:
    """Take the module of a Trainer for what these callbacks work on."""
    assert isinstance(module, Coordinator), f"{type(module).__name__} is no DistillationModule"
    return module
