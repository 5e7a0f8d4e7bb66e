"""Callbacks of a run: checkpoints and signals, progress, pictures."""

from dkel_lightning.app.callbacks.pictures import AugmentedViews
from dkel_lightning.app.callbacks.progress import EpochLines, EpochProgressBar, Throughput
from dkel_lightning.app.callbacks.saving import (
    BestCheckpoint,
    EarlyStopping,
    LastCheckpoint,
    MetricsRow,
    SaveOnSignal,
    SettingsHash,
)

__all__ = [
    "AugmentedViews",
    "BestCheckpoint",
    "EarlyStopping",
    "EpochLines",
    "EpochProgressBar",
    "LastCheckpoint",
    "MetricsRow",
    "SaveOnSignal",
    "SettingsHash",
    "Throughput",
]
