"""Pipes in the place of the files of a run: whatever reads the run goes on without them, and waits for none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dkel_lightning.app import drawing, tasks
from dkel_lightning.app.cli.folders import find_resume
from dkel_lightning.app.runs.claim import claim
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.errors import CheckpointError
from dkel_lightning.export import open_exported
from tests.app.tasks.exporting import QUICK, trained, values_of
from tests.compose import tiny_run
from tests.pipes import not_waited_for, piped

NEEDED = ("config.yaml", ".claimed", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
WRITTEN_BY_OTHERS = ("loggers.json", "failed.txt", "job.json")


@pytest.mark.slow
def test_nobody_waits_for_pipes_among_the_files_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "encoded", lambda *_: b"drawn")
    folder = tmp_path / "run"
    checkpoint = trained(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix() for path in files}
    assert names > {*NEEDED, "provenance.json", "classes.json", "metrics.csv", "summary.json", "confusion.csv"}
    for name in [*names - {*NEEDED}, *WRITTEN_BY_OTHERS]:
        piped(folder / name)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    given = {
        "export": ("export.format=state_dict", *QUICK),
        "evaluate": ("trainer=cpu",),
        "predict": (f"predict.images='{tmp_path / 'a.png'}'", "trainer=cpu"),
    }
    with not_waited_for(100):
        for task, overrides in given.items():
            values = values_of(checkpoint, f"task={task}", f"checkpoint='{checkpoint}'", *overrides)
            tasks.run(Run(values, claim(folder / task, "mine")))
        tasks.run(replace(tiny_run(folder, "method.peers=2"), resume=find_resume(str(folder))))
    assert (folder / "summary.json").is_file()


def test_nobody_waits_for_pipes_among_the_files_of_an_export(tmp_path: Path) -> None:
    for name in ("export.json", "weights.pt", "model.onnx"):
        piped(tmp_path / name)
    with not_waited_for(), pytest.raises(CheckpointError, match="holds no exported network"):
        open_exported(tmp_path)
