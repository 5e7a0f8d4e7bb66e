"""The methods, one file each. Every file in this folder is imported, so that it can register a method."""

from __future__ import annotations

import importlib
import pkgutil

from dkel_lightning.methods.base import METHODS, Method, MethodSettings, Needs, Preset, create, get_preset, register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["METHODS", "Method", "MethodSettings", "Needs", "Preset", "create", "get_preset", "register"]
