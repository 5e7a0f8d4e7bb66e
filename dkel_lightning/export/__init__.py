"""Shipping a trained network: files for use elsewhere, checked against what was trained."""

from dkel_lightning.export.exporter import Shipped, export
from dkel_lightning.export.formats import FORMATS, Exported, open_exported
from dkel_lightning.export.hub import pull, push
from dkel_lightning.export.metadata import Preprocessing

__all__ = ["FORMATS", "Exported", "Preprocessing", "Shipped", "export", "open_exported", "pull", "push"]
