"""What a training shows: a line an epoch, on a terminal above a bar."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dkel_lightning.app.callbacks import progress
from dkel_lightning.app.tasks.train import train
from tests.compose import tiny_run


def test_the_lines_of_all_epochs_stay_above_the_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_run(tmp_path, "callbacks.progress=bar", "trainer.max_epochs=2"))
    shown = capsys.readouterr().out
    assert re.search(r"epoch 2: 100%.* 3/3 ", shown)
    lines = [line for line in re.split(r"[\r\n]+", shown) if re.match(r"epoch \d/2 .* loss .*images/s$", line)]
    assert [line[:17] for line in lines] == ["epoch 1/2  step 3", "epoch 2/2  step 6"]


def test_a_line_an_epoch_says_the_same_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_run(tmp_path, "callbacks.progress=auto"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split("  ")[:2] for line in lines] == [["epoch 1/2", "step 3"], ["epoch 2/2", "step 6"]]
    pattern = r"  loss [\d.]+  student [\d.]+  ensemble [\d.]+  teacher [\d.]+  r 1.00  v [\d.]+  [\d,]+ images/s$"
    assert all(re.search(pattern, line) for line in lines)


def test_a_loss_that_runs_away_does_not_push_the_rest_out_of_sight() -> None:
    metrics = {"train/loss": torch.tensor(3.4e18), "val/acc/student_best": torch.tensor(0.1), "other": 1.0}
    assert progress.epoch_figures(metrics) == {"loss": "3.4e+18", "student": "0.1000"}
    longest = progress.epoch_figures(dict.fromkeys((name for _, name, _ in progress.SHOWN), -123456.0))
    assert max(map(len, longest.values())) <= 10
