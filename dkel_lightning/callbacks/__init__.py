"""Callbacks that a DistillationModule attaches to its Trainer as its method needs them."""

from dkel_lightning.callbacks.collapse import CollapseGuard
from dkel_lightning.callbacks.diversity import DiversityMonitor
from dkel_lightning.callbacks.initialisation import TeacherInitialisation
from dkel_lightning.callbacks.schedules import EMARateSchedule, EnsembleDecaySchedule, RampUpSchedule

__all__ = [
    "CollapseGuard",
    "DiversityMonitor",
    "EMARateSchedule",
    "EnsembleDecaySchedule",
    "RampUpSchedule",
    "TeacherInitialisation",
]
