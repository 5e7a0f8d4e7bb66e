"""Callbacks that a DistillationModule attaches to its Trainer as its method needs them."""

from dkel_lightning.callbacks.collapse import CollapseGuard
from dkel_lightning.callbacks.diversity import DiversityMonitor
from dkel_lightning.callbacks.initialisation import TeacherInitialisation
from dkel_lightning.callbacks.own_batches import MethodBatches, MethodTime
from dkel_lightning.callbacks.schedules import EMARateSchedule, EnsembleDecaySchedule, RampUpSchedule, set_weights
from dkel_lightning.callbacks.teacher_checkpoints import TeacherCheckpoints

OF_MODULES = (
    CollapseGuard,
    DiversityMonitor,
    RampUpSchedule,
    EnsembleDecaySchedule,
    TeacherInitialisation,
    EMARateSchedule,
    MethodTime,
    MethodBatches,
    TeacherCheckpoints,
)
"""What a DistillationModule attaches; each says itself which modules need it."""

__all__ = [
    "OF_MODULES",
    "CollapseGuard",
    "DiversityMonitor",
    "EMARateSchedule",
    "EnsembleDecaySchedule",
    "MethodBatches",
    "MethodTime",
    "RampUpSchedule",
    "TeacherCheckpoints",
    "TeacherInitialisation",
    "set_weights",
]
