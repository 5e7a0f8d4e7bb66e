"""Callbacks of the application: saving, progress, pictures. They serve in any Trainer."""

from dkel_lightning.app.callbacks.progress import EpochLines, LiveProgressBar, Throughput
from dkel_lightning.app.callbacks.saving import BestCheckpoint, LastCheckpoint, SaveOnSignal

__all__ = ["BestCheckpoint", "EpochLines", "LastCheckpoint", "LiveProgressBar", "SaveOnSignal", "Throughput"]
