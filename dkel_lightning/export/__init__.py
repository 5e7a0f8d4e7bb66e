"""Shipping a trained network: files that load without this library, checked against what was trained."""

from dkel_lightning.export.formats import FORMATS, Exported, open_exported
from dkel_lightning.export.record import Preprocessing
from dkel_lightning.export.ship import Shipped, export

__all__ = ["FORMATS", "Exported", "Preprocessing", "Shipped", "export", "open_exported"]
