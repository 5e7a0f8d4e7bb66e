"""Commands of this program as a person can type them. Imports neither torch nor Lightning."""

from __future__ import annotations

import re
import shlex

_PLAIN = re.compile(r"[A-Za-z0-9_./:+-]+")


def override(key: str, value: object) -> str:
    """Write `key=value` so that it is read as this text, whatever that holds."""
    text = str(value)
    return f"{key}={text if _PLAIN.fullmatch(text) else quoted(text)}"


def quoted(text: str) -> str:
    """Write a text in quotes, so that it is read as this text, whatever it holds."""
    escaped = re.sub(r"(\\*)(?='|$)", r"\1\1", text).replace("'", "\\'")
    return f"'{escaped}'"


def unquoted(value: str) -> str:
    """Read a value as `override` writes it, or as a person quotes it."""
    quote = value[:1]
    if quote not in ("'", '"') or len(value) < 2 or value[-1] != quote:
        return value
    # Backslashes escape only a quote, and themselves before one or at the end.
    return re.sub(rf"(\\+)({quote}|$)", lambda found: found[1][: len(found[1]) // 2] + found[2], value[1:-1])


def typed(*arguments: str) -> str:
    """Write a command of this program as it can be typed into a shell."""
    return shlex.join(["dkel", *arguments])
