"""Overrides of the command line, read as Hydra reads them."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import CompactHydraException, OverrideParseException

from dkel_lightning.app.config import schema
from dkel_lightning.app.tasks import registry
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime import command_lines
from dkel_lightning.settings.keys import shortened


def parse(item: str) -> Override:
    """Read one override, without a plus where the key exists: Hydra refuses that.

    Raises:
        ConfigError: it is none.
    """
    try:
        read = OverridesParser.create().parse_overrides([item])[0]
    except (OverrideParseException, CompactHydraException, RecursionError, ValueError) as error:
        if item == "help" or item in registry.TASKS:
            raise ConfigError(f"Write {'--help' if item == 'help' else f'task={item}'} in place of {item}.") from error
        raise ConfigError(
            f"Cannot read {shortened(item)!r}: write key=value or group=option, with quotes around a value that "
            "holds anything but letters of English, digits and the signs ._-/ (\"key='a value'\")."
        ) from error
    if isinstance(swept := read.value(), RangeSweep):
        assert swept.start is not None
        assert swept.stop is not None
        if swept.step == 0 or not (swept.stop - swept.start) / swept.step <= MOST_JOBS:
            raise too_many(shortened(item))
    return parse(item.lstrip("+")) if read.is_add() and read.key_or_group in schema.KEYS else read


MOST_JOBS = 10_000
"""A sweep of more is a slip of the finger: it is refused before it is written out."""


def too_many(what: str) -> ConfigError:
    """Say that a sweep would have too many jobs."""
    return ConfigError(f"{what} gives more than {MOST_JOBS:,} jobs: sweep over fewer values, or search in a range.")


def forced(item: Override) -> str:
    """Write an override of a key so that Hydra takes it whatever else is chosen."""
    return f"++{(item.input_line or '').lstrip('+')}"


def is_given(value: str | None) -> bool:
    """Tell whether a path was given, and not null."""
    return value not in (None, "", "null")


def values_of(item: Override) -> list[str]:
    """List what a job may be given by an override: every value of a sweep, both ends of a range."""
    key = item.get_key_element()
    if not item.is_sweep_override():
        return [item.input_line or ""]
    if item.is_discrete_sweep():
        return [f"{key}={value}" for value in item.sweep_string_iterator()]
    ends = item.value()
    assert isinstance(ends, IntervalSweep)
    return [f"{key}={end}" for end in (ends.start, ends.end)]


def split(text: str) -> tuple[str, str]:
    """Split an override as it was typed into its key and its value, without plus and quotes."""
    key, _, value = text.lstrip("+").partition("=")
    return key, command_lines.unquoted(value)
