"""Threads of the whole process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dkel_lightning.app import tasks
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.runtime import processors
from tests.compose import compose


class TrainedError(Exception):
    """Raised in the place of a training."""


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(run: Run) -> None:
        raise TrainedError

    monkeypatch.setattr("dkel_lightning.app.tasks.train.train", train)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("there", [1, 4])
def test_more_threads_than_processors_are_pointed_out(
    there: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processors, "allowed", lambda: there)
    before = torch.get_num_threads()
    with pytest.raises(TrainedError):
        tasks.run(Run(compose("execution.threads=2", "trainer=cpu"), tmp_path))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    said = "execution.threads=2: processors here: 1. More threads wait for each other."
    assert (said in capsys.readouterr().out) is (there == 1)
