"""The methods, one file each. A new file that registers a method in this folder is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from dkel_lightning.methods.base import METHODS, Method, MethodSettings, Needs, Preset, create, get_preset, register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["METHODS", "Method", "MethodSettings", "Needs", "Preset", "create", "get_preset", "register"]
