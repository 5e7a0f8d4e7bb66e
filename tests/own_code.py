"""What tests of a user's own code share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from dkel_lightning import data, methods, networks
from dkel_lightning.app.cli import keys, user_code
from dkel_lightning.app.tasks.registry import TASKS
from dkel_lightning.settings.methods import PRESETS
from dkel_lightning.settings.teacher import TEACHERS
from tests import compose

REGISTRIES: tuple[Any, ...] = (data.DATASETS, methods.METHODS, networks.BACKBONES, PRESETS, TASKS, TEACHERS)


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """Forget in the end what was registered meanwhile, and the modules of the working folder."""
    known = [dict(registry) for registry in REGISTRIES]
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        for registry, before in zip(REGISTRIES, known, strict=True):
            for name in set(registry) - set(before):
                del registry[name]
                keys._chosen.cache_clear()
                compose.plain.cache_clear()
        for group in user_code.GROUPS:
            ConfigStore.instance().repo.pop(group, None)
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).parent == Path.cwd():
                del sys.modules[name]
