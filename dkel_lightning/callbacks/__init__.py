"""Callbacks that a DistillationModule attaches to its Trainer as its method needs them."""

from dkel_lightning.callbacks.collapse import CollapseGuard
from dkel_lightning.callbacks.diversity import DiversityMonitor
from dkel_lightning.callbacks.initialisation import TeacherInitialisation
from dkel_lightning.callbacks.own_batches import MethodBatches
from dkel_lightning.callbacks.schedules import WeightSchedules, set_weights
from dkel_lightning.callbacks.teacher_checkpoints import TeacherCheckpoints

OF_MODULES = (
    CollapseGuard,
    DiversityMonitor,
    TeacherInitialisation,
    WeightSchedules,
    MethodBatches,
    TeacherCheckpoints,
)
"""What a DistillationModule attaches; `needed_by` says to which modules."""

__all__ = [
    "OF_MODULES",
    "CollapseGuard",
    "DiversityMonitor",
    "MethodBatches",
    "TeacherCheckpoints",
    "TeacherInitialisation",
    "WeightSchedules",
    "set_weights",
]
