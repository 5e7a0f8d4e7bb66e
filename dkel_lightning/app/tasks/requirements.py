"""What a comparison asks of the settings. Imports neither torch nor Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Values = Mapping[str, Any]


def names_one(devices: Any) -> bool:
    """Tell whether `trainer.devices` is of one device: a number, or a list of one."""
    return str(devices) == "1" or (isinstance(devices, list) and len(devices) == 1)


def one_process(trainer: Values) -> bool:
    """Tell whether a training certainly stays in one process, of whatever devices the machine has."""
    return names_one(trainer["devices"]) or (trainer["accelerator"] == "cpu" and trainer["devices"] == "auto")


def of_comparison(values: Values) -> Iterator[str]:
    """Say what makes a comparison meaningless."""
    trainer = values["trainer"]
    if not names_one(trainer["devices"]) or trainer["num_nodes"] != 1:
        yield "task=compare trains on one device: leave trainer.devices at 1."
    if trainer["fast_dev_run"]:
        yield "trainer.fast_dev_run leaves nothing to compare: set trainer.max_epochs=1 instead."
