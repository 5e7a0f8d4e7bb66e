"""task=report: which folder it is about, where the page goes, and what it says to a folder that is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dkel_lightning.app import figures
from dkel_lightning.app.runs import kinds, notes
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.app.tasks.report import report
from dkel_lightning.app.tasks.train import train
from dkel_lightning.errors import ConfigError
from tests.app.report.pages import read, write_run
from tests.compose import prepare, tiny_run


def task(of: Path | None, where: Path | None = None) -> Run:
    return Run({"report": {"of": None if of is None else str(of)}}, where or of or Path())


@pytest.mark.slow
def test_a_real_run_is_reported_with_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    train(tiny_run(folder))
    result = report(task(folder))
    assert (result.kind, result.file) == ("run", folder / "report.html")
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(folder / "report.html"))
    reader = read(result.file.read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text())
    for test in summary["test"].values():
        assert f"{100 * test['deployed_accuracy']:.2f} %" in reader.text
        for nll in test["nll"].values():
            assert f"{nll:.4f}" in reader.text
    assert "./metrics.csv" in {one["href"] for one in reader.all("a")}
    # Every group of columns that a run of today logs has a title.
    found = figures.run_figure(RunRecord(folder).curves)
    assert found is not None
    assert {axes.get_title() for axes in found.axes if axes.get_visible()} <= {*figures.TITLES.values()}


def test_each_kind_of_folder_is_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    write_run(tmp_path / "sweep" / "0")
    write_run(tmp_path / "named_sweep" / "lr=1")
    (tmp_path / "named_sweep" / "multirun.yaml").write_text("")
    write_run(tmp_path / "comparison" / "dkel" / "seed_0")
    (tmp_path / "comparison" / "config.yaml").write_text("")
    found = {path.name: kinds.kind(path) for path in tmp_path.iterdir()}
    assert found == {"run": "run", "sweep": "sweep", "named_sweep": "sweep", "comparison": "comparison"}
    for path in tmp_path.iterdir():
        read(report(task(path)).file.read_text(encoding="utf-8"))


def test_jobs_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "1"):
        write_run(tmp_path / name)
    assert [path.name for path in kinds.jobs(tmp_path)] == ["1", "9", "10"]


def test_the_newest_folder_is_the_one_that_was_written_to_last(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    write_run(outputs / "a" / "old")
    notes.note(write_run(outputs / "b" / "sweep_x" / "0"), ["seed=0"], "finished")
    (outputs / "b" / "empty").mkdir()
    for path in (outputs / "a").rglob("*"):
        os.utime(path, (1, 1))
    assert kinds.newest(outputs) == outputs / "b" / "sweep_x"
    # A report does not make a run newer.
    (outputs / "a" / "old" / "report.html").write_text("")
    assert kinds.newest(outputs) == outputs / "b" / "sweep_x"
    os.utime(outputs / "a" / "old" / "metrics.csv", (2**32, 2**32))
    assert kinds.newest(outputs) == outputs / "a" / "old"


def test_a_folder_that_is_no_run_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        kinds.find(tmp_path / "absent")
    with pytest.raises(ConfigError, match="is no run, sweep or comparison"):
        kinds.find(tmp_path)
    run = write_run(tmp_path / "quickstart" / "TIME")
    with pytest.raises(ConfigError, match=r"It holds some: give one, such as .*TIME"):
        kinds.find(tmp_path / "quickstart")
    with pytest.raises(ConfigError, match="is a file: give the folder of the run"):
        kinds.find(run / "summary.json")
    with pytest.raises(ConfigError, match=r"No run under .*: give the folder of one"):
        kinds.find(None, tmp_path / "nothing")


def test_the_command_line_writes_into_the_folder_that_it_reports_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "outputs" / "it's" / "TIME")
    escaped = str(run).replace("'", "\\'")
    assert prepare(["task=report"]) == ["task=report", f"report.of='{escaped}'", f"hydra.run.dir='{escaped}'"]
    given = ["task=report", "report.of=outputs/its"]
    run.parent.rename(run.parent.with_name("its"))
    with pytest.raises(ConfigError, match="It holds some"):
        prepare(given)
    assert prepare(["task=report", "report.of=outputs/its/TIME"])[-1] == f"hydra.run.dir={tmp_path}/outputs/its/TIME"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=report", "checkpoint=x.ckpt"], "give the folder of a run as report.of=PATH"),
        (["task=report", "report.off=x"], r"Unknown key report.off. Did you mean report.of\?"),
    ],
)
def test_what_means_nothing_to_a_report_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "outputs" / "quickstart" / "TIME")
    with pytest.raises(ConfigError, match=message):
        prepare(arguments)


def test_a_page_can_lie_elsewhere(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    file = report(task(folder, tmp_path / "pages")).file
    assert file == tmp_path / "pages" / "report.html"
    assert "./../run/summary.json" in {one["href"] for one in read(file.read_text()).all("a")}
