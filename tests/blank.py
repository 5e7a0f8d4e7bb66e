"""Figures that are not drawn, which is most of the time of a short run."""

from __future__ import annotations

import io

from matplotlib.figure import Figure
from PIL import Image


def picture(figure: Figure, form: str, dpi: int = 120) -> bytes:
    """Give an empty picture in the place of `drawing.encoded`."""
    written = io.BytesIO(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    if form == "png":
        Image.new("L", (1, 1)).save(written, form)
    return written.getvalue()
