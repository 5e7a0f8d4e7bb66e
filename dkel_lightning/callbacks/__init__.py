"""Callbacks that a DistillationModule attaches to its Trainer as its method needs them."""

from dkel_lightning.callbacks.collapse import CollapseGuard
from dkel_lightning.callbacks.diversity import DiversityMonitor
from dkel_lightning.callbacks.initialisation import TeacherInitialisation
from dkel_lightning.callbacks.own_batches import MethodBatches
from dkel_lightning.callbacks.schedules import WeightSchedules
from dkel_lightning.callbacks.teacher_checkpoints import TeacherCheckpoints

__all__ = [
    "CollapseGuard",
    "DiversityMonitor",
    "MethodBatches",
    "TeacherCheckpoints",
    "TeacherInitialisation",
    "WeightSchedules",
]
