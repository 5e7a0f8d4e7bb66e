"""Files of made-up runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tests.compose import compose

MEMBERS = ("student_0", "student_1", "student_mean", "student_best", "ensemble", "teacher_0", "teacher_1")


def a_test(epoch: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    """Make one test of summary.json; each member has figures of its own."""
    return {
        "epoch": epoch,
        "images": 360,
        "validated": True,
        "deployed": "teacher_1",
        "deployed_accuracy": accuracy,
        "accuracy": {m: 0.9 + 0.0011 * i for i, m in enumerate(MEMBERS)} | {"teacher_1": accuracy},
        "nll": {m: 0.1 + 0.0123 * i for i, m in enumerate(MEMBERS)},
        "calibration": {m: 0.01 + 0.0017 * i for i, m in enumerate(MEMBERS)},
        "disagreement": 0.0123,
        "distance": 0.456,
        **changes,
    }


def settings(*overrides: str) -> DictConfig:
    """Give a configuration; composing takes long, so only the choice of groups is composed, and that once."""
    keys = [item for item in overrides if "." in item.split("=")[0] or item.startswith("seed=")]
    values = OmegaConf.create(compose(*(item for item in overrides if item not in keys)))
    values.merge_with_dotlist(keys)
    return values


def write_run(
    folder: Path,
    *overrides: str,
    accuracy: float = 0.9611,
    curves: Mapping[str, list[float]] | None = None,
    summary: bool = True,
) -> Path:
    """Write the files that a finished run leaves."""
    folder.mkdir(parents=True)
    values = settings(*overrides)
    OmegaConf.save(values, folder / "config.yaml")
    content = {
        "data": "digits",
        "method": values["method"]["name"],
        "seed": values["seed"],
        "selection": values["data"]["selection"],
        "test": {"last": a_test(6, accuracy - 0.01), "best": a_test(4, accuracy)},
        "images_per_second": 1234.4,
        "seconds": 56.78,
        "peak_memory": {"bytes": 3 * 2**20, "of": "process"},
        "deployed_parameters": 77754,
    }
    if summary:
        (folder / "summary.json").write_text(json.dumps(content))
    provenance = {"command": "dkel seed=3", "python": "3.11.7", "packages": {"torch": "2.99.1"}, "git": None}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    write_metrics(folder, curves or {"val/acc": [0.5, 0.9], "train/loss": [2.0, 1.0]})
    return folder


def write_metrics(folder: Path, curves: Mapping[str, list[float]]) -> None:
    """Write metrics.csv with a row an epoch."""
    length = max(map(len, curves.values()))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", *curves])
        for epoch in range(length):
            cells = [repr(values[epoch]) if epoch < len(values) else "" for values in curves.values()]
            writer.writerow([epoch, 10 * (epoch + 1), *cells])
