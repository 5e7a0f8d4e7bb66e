"""The data sets, one file a format: its reader and the data module that is registered for it.

A new file in this folder is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
