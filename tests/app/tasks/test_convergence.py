"""task=convergence: the files of a small study, what it prints, and its settings."""

from __future__ import annotations

import contextlib
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dkel_lightning.app import tasks
from dkel_lightning.app.config import checks
from dkel_lightning.app.runs.folder import Run, values_in
from dkel_lightning.app.tasks import convergence as module
from dkel_lightning.app.tasks.convergence import ConvergenceResult, convergence
from dkel_lightning.errors import ConfigError
from dkel_lightning.settings.declarations import from_mapping
from dkel_lightning.studies import convergence_study as studies
from dkel_lightning.studies.convergence_settings import ConvergenceSettings
from tests.compose import compose

SMALL = (
    "task=convergence",
    "convergence.runs=40",
    "convergence.epochs=12",
    "convergence.steps_per_epoch=4",
    "convergence.milestones=[8,10]",
    "convergence.rampup=4",
    "convergence.homogenisation.at=[10,400]",
    "convergence.collapse.runs=60",
    "convergence.collapse.sweep_runs=20",
    "convergence.collapse.steps=80",
    "convergence.sweeps.k=[0,0.5]",
    "convergence.sweeps.lambda=[0,1]",
    "convergence.sweeps.decay=[0.9]",
    "convergence.sweeps.init_steps=[0,5]",
    "convergence.sweeps.noise=[1]",
)


@pytest.fixture(scope="module")
def settings() -> ConvergenceSettings:
    return from_mapping(ConvergenceSettings, compose(*SMALL)["convergence"], "convergence")


@pytest.fixture(scope="module")
def found(all_drawn: None, tmp_path_factory: pytest.TempPathFactory) -> ConvergenceResult:
    # Data that is not there: the task must not ask for any.
    values = compose(*SMALL, "data=cifar100", "data.root=nowhere", "data.download=false")
    checks.check(values)
    folder = tmp_path_factory.mktemp("parent")
    with (folder / "printed.txt").open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        return convergence(Run(values, folder / "run"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_writes_its_settings_tables_and_figures(found: ConvergenceResult) -> None:
    names = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml",
        "provenance.json",
        *(f"{name}.csv" for name in ("risks", "curves", "homogenisation", "over_fitting", "collapse", "sweeps")),
        *(f"figures/{name}.png" for name in ("risk", "homogenisation", "over_fitting", "collapse", "sweeps")),
    }
    assert values_in(found.folder)["convergence"]["runs"] == 40
    for path in (found.folder / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


def test_the_tables_hold_what_the_result_holds(found: ConvergenceResult) -> None:
    risks = found.study.risks
    lines = rows(found.folder / "risks.csv")
    assert [line["scheme"] for line in lines] == [scheme.label for scheme in risks.schemes.values()]
    dkel = risks.curves["dkel"]
    assert float(lines[2]["student_risk 12"]) == pytest.approx(found.objective, rel=1e-5)
    assert float(lines[2]["teacher_risk 5"]) == pytest.approx(dkel.teacher_risk[5], rel=1e-5)
    curves = [line for line in rows(found.folder / "curves.csv") if line["scheme"] == risks.schemes["dkel"].label]
    assert [int(line["epochs done"]) for line in curves] == [*range(13)]
    assert float(curves[1]["W of the last epoch"]) == 1.0
    assert float(curves[4]["simulated student_risk"]) == pytest.approx(risks.simulated["dkel"].risk[4].mean(), rel=1e-5)
    collapse = rows(found.folder / "collapse.csv")
    assert len(collapse) == 4 * 4
    assert {line["runs"] for line in collapse} == {"60"}
    assert len(rows(found.folder / "sweeps.csv")) == 2 + 2 + 1 + 6 + 2 + 1


def test_the_seed_draws_the_runs_and_leaves_exact_moments_alone(
    settings: ConvergenceSettings, found: ConvergenceResult
) -> None:
    other = studies.risks(replace(settings, shift=0.0), seed=1, workers=1)
    risks = found.study.risks
    assert (other.curves["pcl"].student_risk == risks.curves["pcl"].student_risk).all()
    assert not (other.simulated["pcl"].risk == risks.simulated["pcl"].risk).any()


def test_the_named_schemes_differ_in_what_their_names_say(settings: ConvergenceSettings) -> None:
    schemes = studies.schemes_of(settings)
    assert [schemes["none"].weight(epoch) for epoch in (0, 200)] == [0.0, 0.0]
    assert schemes["pcl"].weight(0) == pytest.approx(np.exp(-5))
    assert schemes["dkel"].weight(0) == 1.0
    assert (schemes["copy"].draw, schemes["copy"].start) == ("student", "copy")
    assert schemes["weak"].weight(200) == pytest.approx(0.1)


# ---------------------------------------------------------------------- the command line


def test_the_task_is_run_by_its_name(found: ConvergenceResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "convergence", lambda run: found)
    assert tasks.run(Run(compose(*SMALL), tmp_path)) == found.objective


def test_it_prints_where_the_files_lie(found: ConvergenceResult) -> None:
    assert f"Written to {found.folder}: risks.csv" in (found.folder.parent / "printed.txt").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("convergence.lr=5", r"no distillation diverges where the curvature is 1: .* Lower convergence\.lr"),
        ("convergence.collapse.lr=4", r"convergence\.collapse\.lr is 4, .* overflow: lower it"),
    ],
)
def test_a_setting_that_diverges_is_named_before_anything_is_written(
    override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        convergence(Run(compose(*SMALL, override), tmp_path))
    assert [*tmp_path.iterdir()] == []


def test_values_that_cannot_be_are_named_all_at_once() -> None:
    values = compose(*SMALL, "convergence.peers=1", "convergence.sweeps.k=[]", "convergence.curvatures=[1,-1]")
    with pytest.raises(ConfigError) as caught:
        checks.check(values)
    assert str(caught.value).splitlines() == [
        "convergence.peers must be a whole number between 2 and 64, got 1.",
        "convergence.curvatures must be a list, each a number above 0 and up to 1000, got [1, -1].",
        "convergence.sweeps.k must be a list, each a number between 0 and 1000, got [].",
    ]
