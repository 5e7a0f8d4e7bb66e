"""How the job of a command ends: what it leaves when it is interrupted early, and where its folder is moved away."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dkel_lightning.app import tasks
from dkel_lightning.app.cli import main
from dkel_lightning.app.cli.folders import find_resume
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks import stages
from dkel_lightning.errors import DkelError

Given = Callable[..., int]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """Run a command line in an empty folder, with a training that does what is given; return its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(training: Callable[[Run], None], *arguments: str) -> int:
        def task(run: Run, plan: object = None) -> float:
            training(run)
            return 0.5

        monkeypatch.setattr(tasks, "run", task)
        monkeypatch.setattr(sys, "argv", ["dkel", *arguments])
        try:
            main.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def interrupted(run: Run) -> None:
    assert (run.folder / "config.yaml").is_file()
    raise KeyboardInterrupt


def test_an_early_interrupt_leaves_no_folder_that_a_resume_would_take(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert given(lambda run: (run.folder / "metrics.csv").touch(), "hydra.run.dir=outputs/first") == 0
    assert given(interrupted, "hydra.run.dir=outputs/second") == 130
    assert [path.name for path in Path("outputs").iterdir()] == ["first"]
    assert capsys.readouterr().err.strip() == "Interrupted."
    assert find_resume("last") == (tmp_path / "outputs" / "first")


def test_an_interrupt_keeps_the_folder_of_a_run_that_has_written_something(given: Given) -> None:
    def trained(run: Run) -> None:
        (run.folder / "provenance.json").touch()
        interrupted(run)

    assert given(trained, "hydra.run.dir=outputs/it") == 130
    assert sorted(path.name for path in Path("outputs/it").iterdir()) == ["config.yaml", "provenance.json"]


def test_an_interpolation_that_leads_nowhere_is_one_error(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    assert given(interrupted, "hydra.run.dir=${oc.env:NO_SUCH_VARIABLE}/x") == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: hydra.run.dir: ")
    assert "'NO_SUCH_VARIABLE' not found" in said


@pytest.mark.slow
def test_a_job_whose_folder_is_renamed_makes_no_other(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    def moved(run: Run) -> None:
        if run.values["seed"] == 0:
            run.folder.rename(run.folder.with_name("moved"))
            raise DkelError("it has gone")

    assert given(moved, "-m", "seed=0,1", "hydra.sweep.dir=sweep") == 1
    folders = sorted(path.name for path in Path("sweep").iterdir() if path.is_dir() and path.name != "figures")
    assert folders == ["1", "moved"]
    assert "jobs of the sweep failed: 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_of_a_sweep_goes_on_in_the_stage_in_which_it_was_stopped(given: Given) -> None:
    def stopped(run: Run) -> None:
        stage = run.folder / "teacher"
        (stage / "checkpoints").mkdir(parents=True)
        (stage / "config.yaml").write_text(Run(stages.before(run.values)["teacher"], stage).settings)
        torch.save({}, stage / "checkpoints" / "last.ckpt")
        raise KeyboardInterrupt

    command = ("-m", "method=kd", "hydra.sweep.dir=sweep")
    assert given(stopped, *command) == 130
    found: list[Run] = []
    assert given(found.append, *command) == 0
    (student,) = found
    teacher = student.folder / "teacher"
    assert stages.last_checkpoint(teacher) == teacher / "checkpoints" / "last.ckpt"
    assert (student.resume, student.folder) == (None, Path("sweep/0").absolute())


@pytest.mark.slow
def test_each_job_of_a_sweep_says_which_of_how_many_it_is(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    swept = ("-m", "method=dkel,pcl", "seed=3", "+seed=0,1", "trainer.max_epochs=2")
    assert given(lambda run: None, *swept) == 0
    headings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert len(headings) == 4
    assert headings[0] == "[1/4] method=dkel, seed=0"
    assert headings[-1] == "[4/4] method=pcl, seed=1"


@pytest.mark.slow
def test_the_jobs_of_a_preset_and_of_a_search_are_counted_too(given: Given, capsys: pytest.CaptureFixture[str]) -> None:
    assert given(lambda run: None, "experiment=ablation/draw", "seed=0") == 0
    assert "\n[2/2] teacher.draw=student\n" in capsys.readouterr().out
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.01,0.3)")
    assert given(lambda run: None, "-m", *search) == 0
    assert re.search(r"^\[2/2\] optimizer\.lr=0\.\d+$", capsys.readouterr().out, re.MULTILINE)
