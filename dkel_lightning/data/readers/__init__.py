"""The data sets, one file each: a reader and the data module registered for it. New files here are imported too."""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
