"""The interface of DistillationModule, for callbacks, methods and assembly, which it imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from dkel_lightning.modules.batch import Batch
from dkel_lightning.modules.ensemble import EnsembleModule
from dkel_lightning.modules.outputs import Evaluated, MethodInputs
from dkel_lightning.modules.scores import Scores
from dkel_lightning.modules.student import StudentModule
from dkel_lightning.modules.targets import TargetMaker
from dkel_lightning.modules.teacher import TeacherModule
from dkel_lightning.settings.deploy import Deploy
from dkel_lightning.settings.execution import Execution

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Called once per view: uint8 or float images [B, C, H, W] and the generator to draw from -> one view of them."""
Observer = Callable[[MethodInputs, Mapping[str, Tensor], Tensor], None]
"""Called in a training step with its inputs, terms and loss, before the backward pass."""


class Coordinator(Protocol):
    """Student, teacher, ensemble and method, trained together: a DistillationModule."""

    student: StudentModule
    teacher: TeacherModule | None
    ensemble: EnsembleModule | None
    method: Any  # a methods.Method, which imports this package
    scores: Scores
    targets: TargetMaker
    augmentation: Augmentation | None
    deployment: Deploy
    seed: int
    recipe: dict[str, Any] | None
    observers: list[Observer]
    execution: Execution
    batch_keys: Mapping[str, str]
    _ddp_params_and_buffers_to_ignore: list[str]

    @property
    def is_attached(self) -> bool: ...

    @property
    def trainer(self) -> Trainer: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype | str: ...

    def read(self, batch: Any) -> Any: ...

    def views_of_each(self, views: Tensor) -> tuple[Tensor, Tensor]: ...

    def make_batch(self, batch: Batch, *key: int | str) -> Batch: ...

    def make_views(self, images: Tensor, *key: int | str) -> Tensor: ...

    def evaluate(self, views: Tensor) -> Evaluated: ...

    def teacher_distance(self) -> Tensor | None: ...

    def follow(self) -> None: ...


def coordinator(module: LightningModule) -> Coordinator:
    """Cast the module of a Trainer."""
    return cast(Coordinator, module)
