"""What a training shows: two lines that fit a terminal of 80 columns, and a line an epoch where there is none."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dkel_lightning.app.callbacks import progress
from dkel_lightning.app.callbacks.progress import LiveProgressBar, epoch_figures
from dkel_lightning.app.tasks.train import train
from tests.compose import tiny_run


def test_two_live_lines_show_peers_teacher_ensemble_and_both_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    written = io.StringIO()
    terminal = Console(file=written, width=80, force_terminal=True, color_system=None)
    shown = LiveProgressBar._shown

    def record(self: LiveProgressBar) -> object:
        found = shown(self)
        copy = Console(file=io.StringIO(), width=80, record=True, color_system=None)
        copy.print(found)
        seen.append(copy.export_text())
        return found

    monkeypatch.setattr(LiveProgressBar, "_shown", record)
    monkeypatch.setattr(LiveProgressBar, "REFRESHES", 100)
    monkeypatch.setattr("dkel_lightning.app.tasks.train.LiveProgressBar", lambda: LiveProgressBar(terminal))
    train(tiny_run(tmp_path, "callbacks.progress=bar", "trainer.max_epochs=3"))
    steps = [one for one in seen if "epoch 3/3" in one and "images/s" in one]
    assert steps
    first, second = steps[-1].splitlines()[:2]
    assert re.search(r"^epoch 3/3 .* \d/3 step \d [\d,]+ images/s 0:00:0\d left$", first)
    names = ("loss", "student", "ensemble", "teacher", "r", "v")
    assert re.fullmatch("  ".join(rf"{name} \S+" for name in names), second.strip())
    assert all(len(line) <= 80 for one in seen for line in one.splitlines())
    assert re.search(r"epoch 3/3  loss \d", written.getvalue())


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
    assert epoch_figures(metrics) == "loss 3.4e+18  student 0.1000"
    longest = dict.fromkeys((name for _, name, _ in progress.SHOWN), -123456.0)
    assert len(epoch_figures(longest)) <= 100
