"""Exporting a trained network: files for use elsewhere, compared with the network that was trained."""

from dkel_lightning.export.exporter import export
from dkel_lightning.export.formats import FORMATS, Exported, open_exported
from dkel_lightning.export.metadata import Preprocessing

__all__ = ["FORMATS", "Exported", "Preprocessing", "export", "open_exported"]
