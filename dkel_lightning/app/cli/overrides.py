"""Overrides of the command line, read as Hydra reads them."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, OverrideParseException

from dkel_lightning.app.config import schema
from dkel_lightning.errors import ConfigError


def parse(item: str) -> Override:
    """Read one override.

    Raises:
        ConfigError: it is none.
    """
    try:
        return OverridesParser.create().parse_overrides([item])[0]
    except (OverrideParseException, CompactHydraException, RecursionError) as error:
        raise ConfigError(
            f"Cannot read {schema.shortened(item)!r}: write key=value or group=option, with quotes around a value that "
            "holds anything but letters of English, digits and the signs ._-/ (\"key='a value'\")."
        ) from error
