"""Whether two runs have the same settings, as far as these decide what comes of them."""

from __future__ import annotations

from collections.abc import Mapping
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
        and (MACHINE not in schema.flags(key) or (key == "data.root" and _are_other_images(there, here)))
        and not (COMPUTED in schema.flags(key) and here.get(key) is None)
    ]


PUBLISHED = ("digits", "cifar10", "cifar100", "tinyimagenet", "imagenet")
"""Data sets whose images are known by their name, wherever they lie."""


def _are_other_images(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Tell whether a data set of one's own is another: one that has moved keeps the name of its file or folder."""
    places = [Path(str(values.get("data.root"))).name for values in (there, here)]
    return here.get("data.name") not in PUBLISHED and places[0] != places[1]


def differences_of(folder: Path, wanted: Values) -> list[str]:
    """List the keys in which the run in a folder would give other figures than the wanted settings.

    Raises:
        CheckpointError: its config.yaml cannot be read.
    """
    return differences(schema.completed(values_in(folder)), as_written(wanted))
