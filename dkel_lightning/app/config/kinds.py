"""Kinds of values that only the command line knows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from dkel_lightning.settings.keys import SEEDS, Key, fitting, is_count, is_list, is_number, several, whole


def folder_name(meaning: str) -> Key:
    """Describe the name of a folder."""

    def fits(value: Any) -> bool:
        named = isinstance(value, str) and bool(value.strip(". ")) and not set(value) & set("/\\\0")
        return named and len(os.fsencode(value)) <= 200  # file systems allow 255, less what is added

    return fitting("the name of a folder, without slashes and of at most 200 bytes", meaning, fits)


def modules(meaning: str) -> Key:
    """Describe a list of importable modules."""

    def named(item: Any) -> bool:
        return isinstance(item, str) and all(part.isidentifier() for part in item.split("."))

    kind = "a list of Python modules"
    return fitting(kind, meaning, lambda value: is_list(value, 0) and all(map(named, value)), is_free=True)


def amount(meaning: str) -> Key:
    """Describe a number of batches, or a share of them."""
    kind = "a whole number of batches, at most 1000000000, or a share of them between 0.0 and 1.0"
    return fitting(kind, meaning, lambda v: is_number(v) and 0 <= v <= (1 if isinstance(v, float) else 1_000_000_000))


def devices(meaning: str) -> Key:
    """Describe what Lightning takes for devices."""

    def fits(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return bool(value) and all(is_count(item) and 0 <= item <= 1023 for item in value)
        if is_count(value):
            return bool(0 < value <= 1024 or value == -1)
        return isinstance(value, str) and _DEVICES.fullmatch(value) is not None

    return fitting("a number of devices, a list of their indices, -1 or auto", meaning, fits)


_DEVICES = re.compile(r"auto|-1|[1-9]\d{0,3}|\d{1,4}(,\d{0,4}){1,1024}")


def duration(meaning: str) -> Key:
    """Describe a span of time."""

    def fits(value: Any) -> bool:
        if isinstance(value, Mapping):
            named = set(value) <= {"days", "hours", "minutes", "seconds"}
            return (
                named and all(is_number(each) and 0 <= each <= 1e6 for each in value.values()) and any(value.values())
            )
        return isinstance(value, str) and _DURATION.fullmatch(value) is not None and set(value) != {"0", ":"}

    return fitting("days:hours:minutes:seconds as in 00:11:55:00", meaning, fits)


_DURATION = re.compile(r"\d{1,6}:\d\d:\d\d:\d\d")


def seeds(meaning: str) -> Key:
    """Describe a list of seeds, each once."""
    each = whole("", 0, SEEDS)

    def fits(value: Any) -> bool:
        return several("", each).fault(value) is None and len(set(value)) == len(value)

    return fitting(f"a list, each {each.kind}, each once", meaning, fits)


def variants(meaning: str) -> Key:
    """Describe a list of names, each alone or with a list of overrides."""

    def fits(value: Any) -> bool:
        return is_list(value) and all(isinstance(item, str) or _is_labelled(item) for item in value)

    return fitting("a list of names, or of {label: [override, ...]}", meaning, fits, is_free=True)


def _is_labelled(item: Any) -> bool:
    if not isinstance(item, Mapping) or len(item) != 1:
        return False
    ((label, overrides),) = item.items()
    return isinstance(label, str) and isinstance(overrides, list) and all(isinstance(o, str) for o in overrides)
