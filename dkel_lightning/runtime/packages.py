"""Import optional packages. Imports neither torch nor Lightning."""

from __future__ import annotations

import importlib
from typing import Any

from dkel_lightning.errors import ConfigError


def need(package: str, what: str, extra: str) -> Any:
    """Import a package of an extra for `what`, or name the extra in the error."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f'{what} needs {package.split(".")[0]} ({error}): pip install "dkel-lightning[{extra}]".'
        ) from error
