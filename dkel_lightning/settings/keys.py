"""The words in which a setting is declared: what it may hold, what it means, and who may change it.

A setting is a field of a frozen dataclass, `draw: Annotated[str, choice("First weights.", "independent", "student")]`.
`declarations` reads from it all that depends on it.
"""

from __future__ import annotations

import difflib
import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dkel_lightning.schedules import EPOCHS

SEEDS = 2**63 - 1
"""The largest seed."""

REQUIRED = "???"
"""Stands for the default of what must be given, as in Hydra's files."""


class Flag(enum.Enum):
    """What is true of a setting beyond the value that it holds."""

    RESUMABLE = "a resumed run may have another value: what is computed stays the same but for rounding"
    MACHINE = "says where and how a run is executed, and changes no figure; a resumed run may have another value too"
    LONGER = "a resumed run may have a larger value, where no schedule of it is a share of the run"
    COMPUTED = "null until a run fills it in"


RESUMABLE, MACHINE, LONGER, COMPUTED = Flag.RESUMABLE, Flag.MACHINE, Flag.LONGER, Flag.COMPUTED


@dataclass(frozen=True)
class Follows:
    """On the command line a setting that is not given takes the value of another `key`."""

    key: str


@dataclass(frozen=True)
class ShareOfRun:
    """The value is a share of the run, so that a longer run moves it; `key` says the same whatever the length."""

    key: str


@dataclass(frozen=True)
class Key:
    """What one key may hold, and what it means.

    Attributes:
        kind: the type in words.
        meaning: a sentence; empty where the key is part of another's description.
        check: returns what else is to be said of a value that does not fit, None of one that does.
        optional: whether it may be null, as its annotation says.
        is_open: whether it is a mapping whose keys are not known here.
        is_free: whether it takes text of any kind: a folder, a host, a class to import.
        default: REQUIRED where there is none.
        flags: what else is true of it.
        follows: the key whose value it takes on the command line.
        instead: of a share of the run, the key that says the same whatever the length.
    """

    kind: str
    meaning: str
    check: Callable[[Any], str | None]
    optional: bool = False
    is_open: bool = False
    is_free: bool = False
    default: Any = REQUIRED
    flags: frozenset[Flag] = frozenset()
    follows: str | None = None
    instead: str | None = None

    @property
    def resumable(self) -> bool:
        """Whether a resumed run may have another value than it began with."""
        return bool(self.flags & {RESUMABLE, MACHINE})

    def mistake(self, name: str, value: Any) -> str | None:
        """Say in a sentence what is wrong with `value` under the key `name`, None if nothing is."""
        fault = self.fault(value)
        if fault is None:
            return None
        return f"{name} {fault}".rstrip(".") + ("" if fault.endswith("?") else ".")

    def fault(self, value: Any) -> str | None:
        """Say what is wrong with `value`, None if nothing is."""
        if value is None:
            return None if self.optional else f"must be {self.kind}, and is null"
        fault = self.check(value)
        return None if fault is None else f"must be {self.kind}, got {shortened(repr(value))}.{fault}"


def is_number(value: Any) -> bool:
    """Tell a finite number from anything else, true and false included."""
    return is_count(value) or (isinstance(value, float) and math.isfinite(value))


def is_count(value: Any) -> bool:
    """Tell a whole number from anything else, true and false included."""
    return isinstance(value, int) and not isinstance(value, bool)


def fitting(kind: str, meaning: str, fits: Callable[[Any], bool], *, is_free: bool = False) -> Key:
    """Describe what `fits`, in the words of `kind`."""
    return Key(kind, meaning, lambda value: None if fits(value) else "", is_free=is_free)


def number(meaning: str, low: float, high: float, *, above: bool = False) -> Key:
    """Describe a number in a range for which what is computed from it has a meaning; `above` excludes its lower end."""
    between = f"above {low:g} and up to {high:g}" if above else f"between {low:g} and {high:g}"
    return fitting(
        f"a number {between}",
        meaning,
        lambda value: is_number(value) and (low < value if above else low <= value) and value <= high,
    )


def whole(meaning: str, low: int, high: int) -> Key:
    """Describe a whole number in a range that what counts with it can hold."""
    kind = f"a whole number between {low} and {high}"
    return fitting(kind, meaning, lambda value: is_count(value) and low <= value <= high)


def switch(meaning: str) -> Key:
    """Describe true or false."""
    return fitting("true or false", meaning, lambda value: isinstance(value, bool))


def text(meaning: str) -> Key:
    """Describe a piece of text."""
    return fitting("text", meaning, lambda value: isinstance(value, str) and bool(value), is_free=True)


def registered(meaning: str) -> Key:
    """Describe a name that is looked up among those that are known, and does nothing else."""
    return replace(text(meaning), is_free=False)


def choice(meaning: str, *options: str) -> Key:
    """Describe one of some words."""

    def check(value: Any) -> str | None:
        return None if value in options else did_you_mean(str(value), options)

    return Key(f"one of {', '.join(options)}", meaning, check)


def either(first: Key, second: Key) -> Key:
    """Describe a value that fits one of two descriptions."""
    kind, is_free = f"{first.kind}, or {second.kind}", first.is_free or second.is_free
    return fitting(
        kind, first.meaning, lambda value: None in (first.fault(value), second.fault(value)), is_free=is_free
    )


def epochs(meaning: str, most: float) -> Key:
    """Describe a number of epochs as a word."""

    def fits(value: Any) -> bool:
        found = EPOCHS.fullmatch(value) if isinstance(value, str) else None
        return found is not None and float(found[1]) <= most

    return fitting(f"epochs as in 3epochs, at most {most:g}", meaning, fits)


def is_list(value: Any, least: int = 1) -> bool:
    """Tell a list of at least `least` values from anything else."""
    return isinstance(value, list | tuple) and len(value) >= least


def several(meaning: str, each: Key, *, least: int = 1) -> Key:
    """Describe a list of at least `least` values that each fit a description."""

    def fits(value: Any) -> bool:
        return is_list(value, least) and all(each.fault(item) is None for item in value)

    return fitting(f"a list, each {each.kind}", meaning, fits, is_free=each.is_free)


def names(meaning: str) -> Key:
    """Describe a list of names that are looked up."""
    return fitting("a list of names", meaning, lambda v: is_list(v) and all(isinstance(item, str) for item in v))


TIME = 1e6
"""The last epoch of which anything may be said."""


def schedule(meaning: str, low: float, high: float) -> Key:
    """Describe a number, or a mapping {from time: number}."""
    each = number("", low, high)

    def check(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return each.check(value)
        fits = bool(value) and all(
            is_number(key) and 0 <= key <= TIME and each.check(v) is None for key, v in value.items()
        )
        if fits and 0 not in value:
            return f" It starts at {min(value)}: say what holds from 0 on."
        return None if fits else ""

    return Key(f"{each.kind}, or a schedule {{from: value}} of them", meaning, check)


def anything(meaning: str) -> Key:
    """Describe a value that another library checks."""
    return fitting("any value but NaN", meaning, lambda value: bool(value == value), is_free=True)


def entries(meaning: str) -> Key:
    """Describe a mapping whose keys are names of the user's own, and whose values another library checks."""
    return replace(anything(meaning), optional=True, is_open=True)


def shortened(text: str) -> str:
    """Keep a message readable that repeats what was typed."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def did_you_mean(name: str, options: Iterable[str], most: int = 1) -> str:
    """Ask for the options that are nearest to a name, so many at most; empty where none is near."""
    near = difflib.get_close_matches(name, list(options), n=most)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that a key does not exist, with the nearest ones and its siblings."""
    known = list(known)
    group = key.rsplit(".", 1)[0] + "." if "." in key else ""
    siblings = sorted(name for name in known if name.startswith(group) and not name.endswith("*"))
    groups = {name.split(".")[0] for name in known}
    hint = did_you_mean(key, known if group else [*groups, *known])
    listed = (
        f" Keys of {group[:-1]}: {', '.join(name[len(group) :] for name in siblings)}." if group and siblings else ""
    )
    return f"Unknown key {key}.{hint}{listed}"


def apart(node: str, mean: object, std: object) -> Iterator[str]:
    """Say it of constants of a normalisation of which one is given."""
    if (mean is None) != (std is None):
        yield f"{node}.mean and {node}.std belong together: give both or neither."


def unknown_choice(group: str, name: str, options: Iterable[str]) -> str:
    """Say that a group has no such option."""
    options = sorted(options)
    return f"Unknown choice {group}={shortened(name)}.{did_you_mean(name, options)} Choices: {', '.join(options)}."
