"""Callbacks that a DistillationModule attaches to its Trainer as its method needs them."""

from dkel_lightning.callbacks.collapse import CollapseGuard
from dkel_lightning.callbacks.diversity import DiversityMonitor
from dkel_lightning.callbacks.initialisation import TeacherInitialisation
from dkel_lightning.callbacks.progress import EpochLines, LiveProgressBar, Throughput
from dkel_lightning.callbacks.saving import BestCheckpoint, LastCheckpoint, SaveOnSignal
from dkel_lightning.callbacks.schedules import EMARateSchedule, EnsembleDecaySchedule, RampUpSchedule

__all__ = [
    "BestCheckpoint",
    "CollapseGuard",
    "DiversityMonitor",
    "EMARateSchedule",
    "EnsembleDecaySchedule",
    "EpochLines",
    "LastCheckpoint",
    "LiveProgressBar",
    "RampUpSchedule",
    "SaveOnSignal",
    "TeacherInitialisation",
    "Throughput",
]
