"""Export a trained network to files that are verified against it."""

from dkel_lightning.export.exporter import export
from dkel_lightning.export.formats import FORMATS, Exported, open_exported
from dkel_lightning.export.metadata import Preprocessing

__all__ = ["FORMATS", "Exported", "Preprocessing", "export", "open_exported"]
