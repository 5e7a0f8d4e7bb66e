"""Callbacks of the application: saving, progress, pictures. They serve in any Trainer."""

from dkel_lightning.app.callbacks.progress import EpochLines, EpochProgressBar, Throughput
from dkel_lightning.app.callbacks.saving import BestCheckpoint, LastCheckpoint, SaveOnSignal

__all__ = ["BestCheckpoint", "EpochLines", "EpochProgressBar", "LastCheckpoint", "SaveOnSignal", "Throughput"]
