"""The scripts under docs/figures, as modules."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs" / "figures"))

import draw
import rooms

__all__ = ["draw", "rooms"]
