"""Kinds of values that only the command line knows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from dkel_lightning.settings.keys import SEEDS, Key, is_count, is_number, whole


def folder_name(meaning: str) -> Key:
    """Describe the name of a folder."""

    def check(value: Any) -> str | None:
        fits = isinstance(value, str) and value.strip(". ") and not set(value) & set("/\\\0")
        return None if fits and len(os.fsencode(value)) <= 200 else ""  # file systems allow 255, less what is added

    return Key("the name of a folder, without slashes and of at most 200 bytes", meaning, check)


def modules(meaning: str) -> Key:
    """Describe a list of importable modules."""

    def check(value: Any) -> str | None:
        fits = isinstance(value, list | tuple) and all(
            isinstance(item, str) and all(part.isidentifier() for part in item.split(".")) for item in value
        )
        return None if fits else ""

    return Key("a list of Python modules", meaning, check, is_free=True)


def amount(meaning: str) -> Key:
    """Describe a number of batches, or a share of them."""

    def check(value: Any) -> str | None:
        fits = is_number(value) and 0 <= value <= (1 if isinstance(value, float) else 1_000_000_000)
        return None if fits else ""

    return Key("a whole number of batches, at most 1000000000, or a share of them between 0.0 and 1.0", meaning, check)


def devices(meaning: str) -> Key:
    """Describe what Lightning takes for devices."""

    def check(value: Any) -> str | None:
        if isinstance(value, list | tuple):
            return None if value and all(is_count(item) and 0 <= item <= 1023 for item in value) else ""
        fits = is_count(value) and (0 < value <= 1024 or value == -1)
        return None if fits or (isinstance(value, str) and _DEVICES.fullmatch(value)) else ""

    return Key("a number of devices, a list of their indices, -1 or auto", meaning, check)


_DEVICES = re.compile(r"auto|-1|[1-9]\d{0,3}|\d{1,4}(,\d{0,4}){1,1024}")


def duration(meaning: str) -> Key:
    """Describe a span of time."""

    def check(value: Any) -> str | None:
        if isinstance(value, Mapping):
            named = set(value) <= {"days", "hours", "minutes", "seconds"}
            fits = named and all(is_number(each) and 0 <= each <= 1e6 for each in value.values())
            return None if fits and any(value.values()) else ""
        written = isinstance(value, str) and _DURATION.fullmatch(value) is not None
        return None if written and set(value) != {"0", ":"} else ""

    return Key("days:hours:minutes:seconds as in 00:11:55:00", meaning, check)


_DURATION = re.compile(r"\d{1,6}:\d\d:\d\d:\d\d")


def seeds(meaning: str) -> Key:
    """Describe a list of seeds, each once."""
    each = whole("", 0, SEEDS)

    def check(value: Any) -> str | None:
        fits = isinstance(value, list | tuple) and bool(value) and all(each.fault(item) is None for item in value)
        return None if fits and len(set(value)) == len(value) else ""

    return Key(f"a list, each {each.kind}, each once", meaning, check)


def variants(meaning: str) -> Key:
    """Describe a list of names, each alone or with a list of overrides."""

    def labelled(item: Any) -> bool:
        if not isinstance(item, Mapping) or len(item) != 1:
            return False
        ((label, overrides),) = item.items()
        return isinstance(label, str) and isinstance(overrides, list) and all(isinstance(o, str) for o in overrides)

    def check(value: Any) -> str | None:
        fits = isinstance(value, list | tuple) and value and all(isinstance(v, str) or labelled(v) for v in value)
        return None if fits else ""

    return Key("a list of names, or of {label: [override, ...]}", meaning, check, is_free=True)
