"""Whether two runs have the same settings, as far as these decide what comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dkel_lightning.app.config import schema
from dkel_lightning.app.config.schema import Values
from dkel_lightning.app.runs.folder import values_in
from dkel_lightning.settings.keys import COMPUTED, MACHINE


def as_written(values: Values) -> dict[str, Any]:
    """Turn values into what reading them back from a config.yaml gives."""
    plain: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(dict(values))))  # type: ignore[assignment]
    return plain


def differences(saved: Values, wanted: Values) -> list[str]:
    """List the keys in which a saved configuration would give other figures than the wanted one."""
    there, here = dict(schema.leaves(saved)), dict(schema.leaves(wanted))
    return [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in dict.fromkeys([*there, *here])
        if there.get(key) != here.get(key)
        and MACHINE not in schema.flags(key)
        and not (COMPUTED in schema.flags(key) and here.get(key) is None)
    ]


def differences_of(folder: Path, wanted: Values) -> list[str]:
    """List the keys in which the run in a folder would give other figures than the wanted settings.

    Raises:
        CheckpointError: its config.yaml cannot be read.
    """
    return differences(schema.completed(values_in(folder)), as_written(wanted))
