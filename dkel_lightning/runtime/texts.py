"""Names that may be a stranger's, made harmless for where they are written. Imports neither torch nor Lightning."""

from __future__ import annotations

import contextlib
import re

_UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, turns the direction of writing or cannot be encoded; a line break alone stays."""
_MARKUP = re.compile(r"[\\`<|]|\](?=[(\[])")
_LINK = re.compile(r"(?<=[A-Za-z])(?=://)|(?<=\bwww)(?=\.)")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How cells begin that a spreadsheet computes."""


def printable(text: object) -> str:
    """Write a text for a terminal: escapes and controls are shown and do nothing."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def first_line(said: object) -> str:
    """Return the first line of what an error or a text says, or its kind where it says nothing."""
    # The text of a KeyError is the representation of what it says.
    text = str(said.args[0] if isinstance(said, KeyError) and said.args else said)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(said).__name__)


def markdown(text: object) -> str:
    """Write a text for a line or cell of Markdown: neither markup nor links."""
    line = " ".join(printable(text).split())
    return _LINK.sub(r"\\", _MARKUP.sub(r"\\\g<0>", line))


def csv_cell(value: object) -> object:
    """Write a cell of a CSV file; a text that a spreadsheet would compute begins with an apostrophe."""
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    with contextlib.suppress(ValueError):
        float(text)
        return text
    return printable(f"'{text}" if text.startswith(_FORMULA) else text)


def plain_cell(text: str) -> str:
    """Read what `csv_cell` has written."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text
