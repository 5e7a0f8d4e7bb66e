"""Nested mappings. Imports neither torch nor Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys; a schedule, with numbers as keys, is one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if _is_node(value) and value else {f"{prefix}{key}": value}
    return flat


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mapping `over` into `base`; a schedule, with numbers as keys, is replaced as a whole."""
    merged = dict(base)
    for key, value in over.items():
        both = _is_node(value) and _is_node(merged.get(key))
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _is_node(value: Any) -> bool:
    """Whether a value is a mapping with settings in it: not a schedule, which has numbers alone."""
    return isinstance(value, Mapping) and not (
        value and all(isinstance(part, int | float) for part in (*value.keys(), *value.values()))
    )
