"""The tables of a sweep, from folders of jobs written by hand."""

from __future__ import annotations

import csv
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dkel_lightning.app import figures, sweeps
from dkel_lightning.app.cli import checks, composition, main
from dkel_lightning.app.cli.invocation import Invocation
from dkel_lightning.app.cli.overrides import parse
from dkel_lightning.app.cli.sweep_session import SweepSession, begun
from dkel_lightning.app.config import choices
from dkel_lightning.app.runs import notes
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.groups import COMPARED, Group, Sweep, has_collapsed, read_sweep
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.errors import ConfigError, DataError, DkelError, NonFiniteError
from tests.app.run_files import write_metrics, write_run
from tests.compose import compose, prepare

PRESETS = sorted(path.stem for path in (choices.folder() / "experiment" / "ablation").glob("[a-z]*.yaml"))


def scores(accuracy: float, *, student: float | None = None) -> dict[str, Any]:
    members = ("student_0", "student_mean", "student_ensemble", "ensemble", "teacher_0", "teacher_mean")
    found = dict.fromkeys((*members, "teacher_ensemble"), accuracy) | {"student_mean": student or accuracy}
    return {
        "epoch": 2,
        "images": 360,
        "classes": 10,
        "deployed": "teacher_0",
        "deployed_accuracy": accuracy,
        "validation_accuracy": accuracy + 0.01,
        "accuracy": found,
        "nll": dict.fromkeys(found, 1 - accuracy),
        "calibration": dict.fromkeys(found, 0.01),
        "disagreement": 0.2,
        "distance": 0.5,
    }


def job(
    sweep: Path,
    number: int,
    overrides: list[str],
    accuracy: float | None = None,
    *,
    last: float | None = None,
    error: Exception | None = None,
    search: bool = False,
) -> None:
    folder = sweep / str(number)
    if accuracy is None:
        notes.note(folder, overrides, "failed" if error else "running", error, search=search)
        return
    notes.note(folder, overrides, "finished", search=search)
    best, at_end = scores(accuracy), scores(accuracy if last is None else last)
    (folder / "summary.json").write_text(json.dumps({"test": {"last": at_end, "best": best}, "seconds": 3.0}))
    accuracies, apart = [accuracy / 2, accuracy], [0.8, 0.4]
    write_metrics(folder, {"val/acc/student_mean": accuracies, "diversity/distance/student-teacher": apart})


def by_setting(sweep: Sweep) -> dict[tuple[str, ...], Group]:
    return {group.values: group for group in sweep.groups}


def three_rates(sweep: Path) -> Sweep:
    """Make two settings with three seeds each, of which one run has failed and one has not ended."""
    for seed, (none, one) in enumerate([(0.90, 0.94), (0.92, 0.93), (0.91, 0.95)]):
        common = [f"seed={seed}", "trainer.max_epochs=2"]
        job(sweep, 2 * seed, [*common, "method.rampup.scale=0"], none)
        job(sweep, 2 * seed + 1, [*common, "+method.rampup.scale='1'"], one)
    job(sweep, 10, ["seed=3", "trainer.max_epochs=2", "method.rampup.scale=0"], 0.99)
    job(sweep, 9, ["seed=3", "trainer.max_epochs=2", "method.rampup.scale=1"], error=DataError("no images\nat all"))
    job(sweep, 11, ["seed=4", "trainer.max_epochs=2", "method.rampup.scale=1"])
    return read_sweep(sweep)


def test_jobs_are_grouped_by_what_varies_and_not_by_seed_or_by_what_all_share(tmp_path: Path) -> None:
    sweep = three_rates(tmp_path)
    assert sweep.keys == ("method.rampup.scale",)
    assert [job.name for job in sweep.jobs] == ["0", "1", "2", "3", "4", "5", "9", "10", "11"]
    assert {setting: len(group.runs) for setting, group in by_setting(sweep).items()} == {("0",): 4, ("1",): 5}
    assert [job.state for job in sweep.jobs[-3:]] == ["failed", "finished", "unfinished"]


def test_means_and_paired_differences_are_those_of_a_hand_computation(tmp_path: Path) -> None:
    sweep = three_rates(tmp_path)
    settings = by_setting(sweep)
    found = settings["1",].sample(COMPARED)
    assert found is not None
    assert found.n == 3
    assert [found.mean, found.deviation] == pytest.approx([0.94, 0.01])
    difference = settings["1",].less(settings["0",])
    # 4, 1 and 4 points: mean 3, deviation sqrt(3), t(0.975, 2) = 4.30265; seed 3 has no partner.
    assert difference is not None
    assert difference.low is not None
    assert difference.n == 3
    assert difference.mean == pytest.approx(0.03)
    assert difference.mean - difference.low == pytest.approx(4.30265 * math.sqrt(3e-4 / 3), rel=1e-5)


@pytest.mark.usefixtures("drawn")
def test_the_files_of_a_sweep_hold_every_job_with_its_failure(tmp_path: Path) -> None:
    sweep = three_rates(tmp_path)
    (tmp_path / "0" / "config.yaml").write_text("figures: {also: [svg]}")
    written = sweeps.write(sweep)
    assert written[:3] == ["sweep.csv", "sweep.md", "curves.csv"]
    assert written[3:] == [f"figures/{name}.{form}" for name in ("sweep", "curves") for form in ("png", "svg")]
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished"] * 6 + ["failed", "finished", "unfinished"]
    assert float(rows[1]["selected deployed accuracy"]) == 0.94
    assert (rows[1]["method.rampup.scale"], rows[1]["seed"]) == ("1", "0")
    assert float(rows[1]["last diversity/distance/student-teacher"]) == 0.4
    assert (rows[6]["selected deployed accuracy"], rows[6]["message"]) == ("", "no images at all")
    text = (tmp_path / "sweep.md").read_text()
    assert "9 jobs: 7 finished, 1 failed, 1 unfinished." in text
    assert "- Job 9 (method.rampup.scale=1, seed=3) failed: no images\n" in text
    assert "In all jobs: `trainer.max_epochs=2`." in text
    assert "| 1 | 3 | 94.00 ± 1.00 |" in text
    assert "| method.rampup.scale=1 | 3 | +3.00 | -1.30 to +7.30 | 5.65 |" in text
    assert "Collapsed" not in text
    with (tmp_path / "curves.csv").open(newline="") as file:
        courses = list(csv.DictReader(file))
    assert len(courses) == 2 * 7
    assert [(row["job"], row["epoch"], row["val/acc/student_mean"]) for row in courses[2:4]] == [
        ("1", "1", "0.47"),
        ("1", "2", "0.94"),
    ]
    for name in ("figures/sweep.png", "figures/curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300


def test_wrong_labels_that_were_learnt_are_tabled_and_drawn_only_where_there_were_any(tmp_path: Path) -> None:
    three_rates(tmp_path)
    sweeps.write(read_sweep(tmp_path))
    assert "learnt" not in (tmp_path / "sweep.md").read_text() + (tmp_path / "curves.csv").read_text()
    for number, learnt in (("0", 0.25), ("2", 0.35), ("4", 0.45), ("10", 0.35)):
        curves = {"train/noise/fit_wrong/student_mean": [0.1, learnt], "val/acc/student_mean": [0.5, 0.5]}
        write_metrics(tmp_path / number, curves)
    sweep = read_sweep(tmp_path)
    sweeps.write(sweep)
    (heading,) = [line for line in (tmp_path / "sweep.md").read_text().splitlines() if "wrong labels learnt" in line]
    assert heading.endswith("| last students' wrong labels learnt (%) |")
    # What the last epoch shows: 25, 35, 45 and 35 %; deviation sqrt(200 / 3).
    assert "| 35.00 ± 8.16 |" in (tmp_path / "sweep.md").read_text()
    course = by_setting(sweep)["0",].curve("train/noise/fit_wrong/student_mean")
    assert course is not None
    assert course[0] == [1, 2]
    assert course[1] == [[0.1, 0.25], [0.1, 0.35], [0.1, 0.45], [0.1, 0.35]]
    assert by_setting(sweep)["1",].curve("train/noise/fit_wrong/student_mean") is None
    with (tmp_path / "curves.csv").open(newline="") as file:
        names = next(csv.reader(file))
    assert "train/noise/fit_wrong/student_mean" in names
    assert "train/noise/fit_wrong/teacher_mean" not in names


def test_a_sweep_of_seeds_alone_is_one_setting(tmp_path: Path) -> None:
    for seed in range(2):
        job(tmp_path, seed, [f"seed={seed}"], 0.9 + 0.01 * seed)
    sweep = read_sweep(tmp_path)
    assert sweep.keys == ()
    sweeps.write(sweep)
    assert "| all | 2 | 90.50 ± 0.71 |" in (tmp_path / "sweep.md").read_text()


def test_a_sweep_without_any_finished_job_still_has_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(tmp_path, 0, ["seed=0", "optimizer.lr=1e30"], error=NonFiniteError("The loss is NaN."))
    assert sweeps.write(read_sweep(tmp_path)) == ["sweep.csv", "sweep.md"]
    sweeps.show(read_sweep(tmp_path))
    assert "n/a" in capsys.readouterr().out


def test_a_sweep_of_evaluations_tables_their_scores(tmp_path: Path) -> None:
    for number, accuracy in enumerate((0.5, 0.75)):
        notes.note(tmp_path / str(number), [f"checkpoint={number}.ckpt"], "finished")
        (tmp_path / str(number) / "evaluation.json").write_text(json.dumps({"test": scores(accuracy)}))
    sweeps.write(read_sweep(tmp_path))
    table = (tmp_path / "sweep.md").read_text()
    assert "| 0.ckpt | 1 | 50.00 | 50.00 |" in table
    assert "| 1.ckpt | 1 | 75.00 | 75.00 |" in table


def test_torn_files_of_a_job_leave_its_row_empty(tmp_path: Path) -> None:
    job(tmp_path, 0, ["seed=0", "optimizer.lr=1"], 0.9)
    job(tmp_path, 1, ["seed=0", "optimizer.lr=2"], 0.8)
    (tmp_path / "1" / "summary.json").write_text('{"test": ')
    (tmp_path / "0" / "metrics.csv").write_text("epoch,val/acc/student_mean\n0,\x00?\n")
    sweep = read_sweep(tmp_path)
    sweeps.write(sweep)
    assert sweep.jobs[1].figures == {}
    assert [group.curve("val/acc/student_mean") for group in sweep.groups] == [None, None]


@pytest.mark.parametrize("state", ["failed", "running"])
def test_figures_are_those_of_a_job_that_has_finished_and_of_no_other(tmp_path: Path, state: str) -> None:
    job(tmp_path, 0, ["seed=0", "method=dkel"], 0.9, last=0.1)
    job(tmp_path, 1, ["seed=0", "method=baseline"], 0.8)
    notes.note(tmp_path / "0", ["seed=0", "method=pcl"], state)
    sweep = read_sweep(tmp_path)
    assert (sweep.jobs[0].figures, has_collapsed(sweep.jobs[0])) == ({}, None)
    sweeps.write(sweep)
    text = (tmp_path / "sweep.md").read_text()
    assert "| pcl | 0 | n/a |" in text
    assert "| baseline | 1 | 80.00 |" in text
    assert "over the same seeds" not in text


def test_a_note_of_other_overrides_is_that_of_another_job(tmp_path: Path) -> None:
    assert not notes.is_of_other(tmp_path, ["seed=0"])
    notes.note(tmp_path, ["seed=0"], "finished")
    assert not notes.is_of_other(tmp_path, ["seed=0"])
    assert notes.is_of_other(tmp_path, ["seed=1"])


def test_collapse_is_counted_by_its_outcome(tmp_path: Path) -> None:
    rate = "optimizer.lr=1"
    job(tmp_path, 0, ["seed=0", rate], 0.5, last=0.1)  # back at chance after the last epoch
    job(tmp_path, 1, ["seed=1", rate], 0.5, last=0.3)
    job(tmp_path, 2, ["seed=2", rate], error=NonFiniteError("The loss is NaN."))
    job(tmp_path, 3, ["seed=3", rate], error=DataError("no images"))  # says nothing about training
    job(tmp_path, 4, ["seed=4", rate], 0.11)
    job(tmp_path, 5, ["seed=0", "optimizer.lr=2"], 0.9)
    sweep = read_sweep(tmp_path)
    assert [has_collapsed(job) for job in sweep.jobs] == [True, False, True, None, True, False]
    sweeps.write(sweep)
    text = (tmp_path / "sweep.md").read_text()
    # 3 of 4: centre (3/4 + z^2/8) / (1 + z^2/4) = 0.6276, half 0.3272, with z = 1.96.
    assert "| optimizer.lr=1 | 3 | 4 | 75 % | 30 to 95 % |" in text
    assert "| optimizer.lr=2 | 0 | 1 | 0 % | 0 to 79 % |" in text


def test_chance_is_what_guessing_may_reach(tmp_path: Path) -> None:
    # Of 360 images guessed among 10 classes, 54 (15 %) are reached in more than one case of a thousand; 57 are not.
    for hits, collapsed in ((36, True), (54, True), (57, False)):
        summary = {"test": {"last": scores(0.9, student=hits / 360)}}
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        assert has_collapsed(RunRecord(tmp_path)) is collapsed


@pytest.mark.parametrize(
    ("values", "places", "numeric", "note"),
    [
        (["2", "1", "5", "3"], {"1": 1.0, "2": 2.0, "3": 3.0, "5": 5.0}, True, ""),
        (["0", "0.05", "2"], {"0": 0.0, "0.05": 1.0, "2": 2.0}, True, " (even steps)"),
        (["keep", "copy"], {"keep": 0.0, "copy": 1.0}, False, ""),
        (["0.99", "{0:0.99,5:0.9}"], {"0.99": 0.0, "{0:0.99,5:0.9}": 1.0}, False, ""),
    ],
)
def test_an_axis_is_numeric_where_its_values_are_and_stay_apart(
    values: list[str], places: dict[str, float], numeric: bool, note: str
) -> None:
    found = figures.axis(values)
    assert found == (places, numeric, note)
    assert [*found[0]] == [*places]


def test_other_settings_in_a_jobs_folder_are_refused_with_the_differences(tmp_path: Path) -> None:
    begun = compose("data.mean=[0.5]", "data.workers=2")
    del begun["figures"]  # of a version that had none
    (tmp_path / "config.yaml").write_text(Run(begun, tmp_path).settings)
    notes.refuse_other(tmp_path, compose("data.workers=0"))
    with pytest.raises(ConfigError, match=r"other settings \(optimizer\.lr: 0\.1 there, 0\.2 here\)"):
        notes.refuse_other(tmp_path, compose("optimizer.lr=0.2"))


# ---------------------------------------------------------------------- searches


def test_a_search_is_listed_by_validation_accuracy_and_names_the_test_accuracy_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (rate, accuracy) in enumerate([("0.0123456789", 0.91), ("0.1", 0.95), ("0.25", 0.93)]):
        job(tmp_path, number, [f"optimizer.lr={rate}", "teacher.draw=independent"], accuracy, search=True)
    failure = NonFiniteError("The loss is NaN.")
    job(tmp_path, 3, ["optimizer.lr=0.9", "teacher.draw=student"], error=failure, search=True)
    notes.note_finished(tmp_path / "0")  # gone on with by itself, it is still one of the search
    sweep = read_sweep(tmp_path)
    assert sweeps.write(sweep) == ["sweep.csv", "sweep.md"]
    rows = [line for line in (tmp_path / "sweep.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| 1 | 0.1 | independent | 96.00 | 95.00 |",
        "| 2 | 0.25 | independent | 94.00 | 93.00 |",
        "| 0 | 0.01235 | independent | 92.00 | 91.00 |",
    ]
    assert "Job 3 (optimizer.lr=0.9, teacher.draw=student) failed" in (tmp_path / "sweep.md").read_text()
    sweeps.show(sweep)
    shown = capsys.readouterr().out
    assert shown.index("96.00") < shown.index("94.00") < shown.index("92.00")


# ---------------------------------------------------------------------- presets that sweep


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_ablation_is_a_sweep_over_keys_and_values_that_exist(name: str) -> None:
    swept = main.prepared([f"experiment=ablation/{name}"]).swept
    assert swept is not None
    assert swept[0].startswith("seed=")
    assert len(swept) > 1


@pytest.mark.parametrize("scale", ["cifar10", "cifar100", "tinyimagenet"])
def test_an_ablation_runs_at_the_size_that_scale_chooses(scale: str) -> None:
    prepare(["experiment=ablation/ema_rate", f"scale={scale}"])
    plain = composition.resolved(composition.compose([f"experiment={scale}"]))
    at_scale = composition.resolved(composition.compose(["experiment=ablation/ema_rate", f"scale={scale}"]))
    assert at_scale.pop("name") == "ablation_ema_rate"
    assert plain.pop("name") == scale
    assert at_scale == plain


def test_what_the_command_line_gives_wins_over_the_preset() -> None:
    given = ["seed=0,1,2", "teacher.draw=independent,student", "seed=7"]
    jobs = [*checks._jobs([parse(item) for item in given])]
    assert jobs == [["seed=7", f"teacher.draw={draw}"] for draw in ("independent", "student")]


def test_a_wrong_key_or_value_in_a_preset_is_named_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for name, param in (("key", "teacher.drow: a,b"), ("value", "teacher.draw: independent,nowhere")):
        (tmp_path / "experiment" / f"{name}.yaml").write_text(
            f"# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      {param}\n"
        )
    with pytest.raises(ConfigError, match=r"Unknown key teacher.drow. Did you mean teacher.draw\?"):
        prepare(["--config-dir", str(tmp_path), "experiment=key"])
    with pytest.raises(ConfigError, match=r"teacher.draw must be one of .*, got 'nowhere'"):
        prepare(["--config-dir", str(tmp_path), "experiment=value"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-m", "experiment=quickstart,ablation/draw"],
            "experiment=ablation/draw is a sweep by itself: give it alone.",
        ),
        (["task=compare", "experiment=ablation/draw"], "leave out -m, or the preset that sweeps"),
        (["scale=cifar100"], "scale= belongs to an ablation: choose one with experiment=ablation/NAME."),
        (["experiment=ablation/ensemble_decay", "method=pcl"], "method.ensemble.decay means nothing with method=pcl"),
        (["experiment=ablation/drow"], "Unknown choice experiment=ablation/drow. Did you mean ablation/draw?"),
    ],
)
def test_what_an_ablation_cannot_be_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(arguments)
    assert message in str(caught.value)


def test_two_processes_do_not_work_on_one_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    invocation = Invocation.of(["-m", "seed=0,1", "hydra.sweep.dir='a sweep'"])
    with begun(invocation) as first:
        assert (first.folder, first.named, first.goes_on) == (Path("a sweep"), True, True)
        with (
            pytest.raises(
                DkelError, match=r"Process \d+ on \S+ is working on .*: wait for it, or choose another folder"
            ),
            begun(invocation),
        ):
            pass
    with begun(invocation) as second:
        assert second.folder == first.folder


def test_the_time_of_a_sweep_is_filled_in_once_and_its_jobs_know_that_nobody_named_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    with begun(Invocation.of(["-m", "seed=0,1", "name=mine"])) as session:
        assert re.fullmatch(r"outputs/mine/sweep_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", str(session.folder))
        assert session.invocation.arguments[-1] == f"hydra.sweep.dir={session.folder}"
        elsewhere: SweepSession = pickle.loads(pickle.dumps(session))  # as joblib and submitit hand it to a job
        assert not elsewhere.goes_on
        monkeypatch.chdir(tmp_path.parent)
        elsewhere.refuse("1")
        elsewhere.refuse("0")
        monkeypatch.chdir(tmp_path)
        assert session.refused() == ["0", "1"]
        assert session.refused() == []
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        assert elsewhere.goes_on


def test_a_job_that_is_finished_by_itself_is_no_longer_noted_as_failed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "0", "seed=0")
    notes.note(folder, ["seed=0"], "failed", OSError("full"))
    (folder / "failed.txt").write_text("OSError: full")
    notes.note_finished(folder)
    record = RunRecord(folder)
    assert (record.state, record.failure, record.overrides) == ("finished", None, {"seed": "0"})
    alone = write_run(tmp_path / "alone", "seed=0")
    notes.note_finished(alone)
    assert not (alone / "job.json").exists()


def test_a_search_without_validation_is_refused() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    for batches in ("0", "1.0,0"):  # in all jobs, or in some
        with pytest.raises(ConfigError, match=r"A search chooses by validation, and trainer\.limit_val_batches is 0"):
            prepare(["-m", "hydra/sweeper=optuna", "optimizer.lr=0.1,0.2", f"trainer.limit_val_batches={batches}"])
    prepare(["hydra/sweeper=optuna", "trainer.limit_val_batches=0"])  # a single run searches nothing
