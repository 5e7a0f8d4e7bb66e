"""task=compare: what is trained, resumed, recorded and written."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning.app.cli.checks import planned as planned_of
from dkel_lightning.app.cli.invocation import Invocation
from dkel_lightning.app.compare.plan import Comparison
from dkel_lightning.app.compare.tables import COLUMNS, markdown
from dkel_lightning.app.config.checks import check
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.app.tasks import compare as module
from dkel_lightning.app.tasks.compare import compare
from dkel_lightning.app.tasks.train import train
from dkel_lightning.errors import ConfigError, DkelError
from dkel_lightning.runtime import locks
from tests.compose import TINY, compose, interrupted_at, tiny_run
from tests.runtime.test_locks import held_elsewhere

TWO = "compare.methods=[dkel,baseline]"
TIMED = {f"{what} {how}" for what in ("images per second", "peak memory", "seconds") for how in ("mean", "deviation")}


def planned(*overrides: str) -> tuple[dict[str, Any], Comparison]:
    given = ["task=compare", *TINY, "compare.seeds=[0,1]", *overrides]
    values = compose(*given)
    check(values)
    return values, planned_of(values, given, Invocation(()))


def run_it(folder: Path, *overrides: str) -> module.CompareResult:
    values, comparison = planned(*overrides)
    return compare(Run(values, folder), comparison)


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        planned(*overrides)
    return str(caught.value)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


# ---------------------------------------------------------------------- the plan


@pytest.mark.slow
def test_members_come_seed_by_seed_and_those_that_follow_the_reference_last() -> None:
    _, comparison = planned("compare.methods=[baseline_long,dkel,pcl]", "compare.reference=dkel")
    assert [(variant.label, seed) for variant, seed in comparison.members()] == [
        ("dkel", 0), ("pcl", 0), ("baseline_long", 0), ("dkel", 1), ("pcl", 1), ("baseline_long", 1),
    ]  # fmt: skip


def test_each_member_is_the_train_task_that_its_own_command_would_be() -> None:
    _, comparison = planned("compare.methods=[pcl,baseline_smoothing]", "data.batch_size=8")
    for variant, own in zip(
        comparison.variants, (["method=pcl"], ["method=baseline", "targets.label_smoothing=0.1"]), strict=True
    ):
        assert variant.values(1) == compose(*TINY, *own, "data.batch_size=8", "seed=1")
    assert comparison.reference == "pcl"


def test_a_label_lays_its_overrides_over_those_of_the_command() -> None:
    overrides = "{fast:['method=pcl','optimizer.lr=0.2']}"
    _, comparison = planned(f"compare.methods=[dkel,{overrides}]", "optimizer.lr=0.3", "method=baseline")
    dkel, fast = (variant.values(0) for variant in comparison.variants)
    assert (dkel["method"]["name"], dkel["optimizer"]["lr"]) == ("dkel", 0.3)
    assert (fast["method"]["name"], fast["optimizer"]["lr"]) == ("pcl", 0.2)
    assert fast["teacher"]["draw"] == "student"


@pytest.mark.slow
def test_other_epochs_stretch_milestones_that_are_epochs_and_leave_shares() -> None:
    settings = ("compare.methods=[dkel,baseline_long]", "trainer.max_epochs=10")
    for milestones, expected in (("[5,8]", [12, 20]), ("[0.5,0.75]", [0.5, 0.75])):
        _, comparison = planned(*settings, f"protocol.milestones={milestones}")
        values = comparison.variants[1].values(0, epochs=25)
        assert values["trainer"]["max_epochs"] == 25
        assert values["scheduler"]["milestones"] == expected
    _, comparison = planned(*settings, "scheduler=cosine")
    assert comparison.variants[1].values(0, epochs=25)["scheduler"]["T_max"] == 25


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("compare.methods=[dkel,basline]",), "Unknown choice compare.methods=basline. Did you mean baseline?"),
        (("compare.methods=[dkel,dkel]",), "compare.methods has dkel twice"),
        (("compare.methods=[dkel,{a/b:['method=pcl']}]",), "'a/b' names a folder"),
        (("compare.methods=[dkel,{x:['method=pcll']}]",), "x: Unknown choice method=pcll. Did you mean pcl?"),
        (("compare.methods=[dkel,{x:['method.temprature=2']}]",), "x: Unknown key method.temprature."),
        (
            ("compare.methods=[dkel,{x:['method.temperature=0']}]",),
            "x: method.temperature must be a number between",
        ),
        (("compare.methods=[dkel,{x:['seed=1']}]",), "x: seed=1 cannot differ between what is compared"),
        (("compare.methods=[dkel,{x:['compare.seeds=[1]']}]",), "x: compare.seeds=[1] cannot differ"),
        (("compare.methods=[dkel,{x:['teacher=none']}]",), "x: teacher=none, but method=dkel needs a teacher"),
        ((TWO, "compare.reference=pcl"), "Unknown choice compare.reference=pcl."),
        (("compare.methods=[baseline_long,dkel]",), "means nothing for the reference itself"),
        (
            ("compare.methods=[dkel,baseline_long]", "trainer.max_steps=9", "protocol.milestones=[1]"),
            "baseline_long: compare.compute=reference needs a length in epochs alone",
        ),
        ((TWO, "seed=3"), "a comparison takes compare.seeds"),
        ((TWO, "trainer.devices=2"), "task=compare trains on one device"),
        (
            (TWO, "compare.seeds=[1,1]"),
            "compare.seeds must be a list, each a whole number between 0 and",
        ),
        (("compare.methods=[]",), "compare.methods must be a list of names"),
    ],
)
def test_a_mistake_is_named_with_its_label_before_anything_trains(overrides: tuple[str, ...], message: str) -> None:
    assert message in refused(*overrides)


def test_mistakes_of_several_labels_come_in_one_message() -> None:
    message = refused("compare.methods=[{x:['method=pcll']},{y:['method=dkell']}]")
    assert [line.split(":")[0] for line in message.splitlines()] == ["x", "y"]


# ---------------------------------------------------------------------- the runs


def test_a_member_whose_checkpoint_is_torn_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, resumed = tmp_path / "checkpoints" / "last.ckpt", []
    last.parent.mkdir()
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr(module, "train", lambda run: resumed.append(run.resume))
    torch.save({}, last)
    module._train({}, tmp_path)
    last.write_bytes(last.read_bytes()[:-50])
    module._train({}, tmp_path)
    best = last.with_name("best.ckpt")
    torch.save({}, best)
    module._train({}, tmp_path)
    assert resumed == [last, None, best]


def test_the_folder_of_a_run_is_not_taken_for_a_comparison(tmp_path: Path) -> None:
    settings = Run(compose(), tmp_path).settings
    (tmp_path / "config.yaml").write_text(settings)
    with pytest.raises(ConfigError, match=r"holds a run, whose settings would be lost: give another"):
        run_it(tmp_path, TWO)
    assert (tmp_path / "config.yaml").read_text() == settings


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_a_comparison_writes_its_table_and_is_gone_on_with_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    through, broken = tmp_path / "through", tmp_path / "broken"
    result = run_it(through, TWO)
    assert set(result.outcomes) == {(label, seed) for label in ("dkel", "baseline") for seed in (0, 1)}
    text = (through / "compare.md").read_text()
    assert "All 4 runs, 0 failed." in text
    assert "| dkel | 2 |" in text
    assert (through / "figures" / "compare.png").read_bytes().startswith(b"\x89PNG")
    with (through / "members.csv").open(newline="") as file:
        members = list(csv.DictReader(file))
    assert [(row["label"], row["seed"]) for row in members] == [
        ("dkel", "0"), ("baseline", "0"), ("dkel", "1"), ("baseline", "1"),
    ]  # fmt: skip
    assert {row["state"] for row in members} == {"finished"}
    # A member is what the same settings give alone.
    alone = train(tiny_run(tmp_path / "alone", "method=baseline", "seed=1"))
    assert float(members[3]["selected accuracy"]) == (alone.best or alone.last).deployed_accuracy

    # Interrupted in the second member, after its first epoch.
    started: list[Path] = []

    def interrupted(run: Run) -> Any:
        started.append(run.folder)
        if len(started) == 2:
            train(interrupted_at(1, run))
        return train(run)

    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_it(broken, TWO)
    out = capsys.readouterr().out
    assert f"compare.folder={broken}" in out.splitlines()[-1]
    assert "resume=" not in out
    assert "1 of 4 runs" in (broken / "compare.md").read_text()
    half = broken / "baseline" / "seed_0"
    assert (half / "checkpoints" / "last.ckpt").is_file()
    assert not (half / "summary.json").exists()
    # The callback that stood for Ctrl-C is no setting of the comparison.
    (half / "config.yaml").write_text((through / "baseline" / "seed_0" / "config.yaml").read_text())

    resumed: list[tuple[str, Path | None]] = []

    def noted(run: Run) -> Any:
        resumed.append((f"{run.folder.parent.name}/{run.folder.name}", run.resume))
        return train(run)

    monkeypatch.setattr(module, "train", noted)
    run_it(broken, TWO)
    assert resumed == [
        ("baseline/seed_0", half / "checkpoints" / "last.ckpt"), ("dkel/seed_1", None), ("baseline/seed_1", None),
    ]  # fmt: skip
    assert table(broken) == table(through)

    # Finished: nothing trains any more, and a label that is added trains alone.
    resumed.clear()
    run_it(broken, TWO)
    assert resumed == []
    with pytest.raises(ConfigError, match=r"optimizer\.lr: 0\.1 there, 0\.2 here"):
        run_it(broken, TWO, "optimizer.lr=0.2")
    assert resumed == []


@pytest.mark.slow
def test_of_several_processes_each_trains_what_no_other_does_and_the_last_has_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    other, folder = tmp_path / "other", tmp_path / "both"
    run_it(other, "compare.methods=[dkel]", "compare.seeds=[0]")

    with held_elsewhere(folder / "dkel" / "seed_0"):
        found = run_it(folder, TWO, "compare.seeds=[0]")
    assert set(found.outcomes) == {("baseline", 0)}
    assert "Other processes train 1 of the 2: the last to end" in capsys.readouterr().out
    assert not (folder / "dkel" / "seed_0" / "failed.txt").exists()
    assert "1 of 2 runs, 0 failed" in (folder / "compare.md").read_text()

    def ends_first(run: Run) -> Any:
        """Train, and let the other process end before."""
        shutil.copytree(other / "dkel" / "seed_0", folder / "dkel" / "seed_0", dirs_exist_ok=True)
        return train(run)

    monkeypatch.setattr(module, "train", ends_first)
    with held_elsewhere(folder / "dkel" / "seed_0"):
        found = run_it(folder, TWO)
    assert set(found.outcomes) == {("dkel", 0), ("baseline", 0), ("dkel", 1), ("baseline", 1)}
    assert "All 4 runs, 0 failed" in (folder / "compare.md").read_text()


@pytest.mark.slow
def test_runs_of_an_earlier_version_are_gone_on_with() -> None:
    """Those under docs were made before some of today's keys were there."""
    given = ["task=compare", "experiment=own_data", "data=npz", "data.root=cifar100.npz", "backbone=resnet20"]
    given += ["data.padding=4", "data.flip=true", "data.limit=5000", "trainer.max_epochs=50", "precision=bf16"]
    given += ["trainer.check_val_every_n_epoch=5", "trainer=cpu", "compare.seeds=[0]"]
    runs = Path(__file__).parents[3] / "docs" / "results" / "cifar100" / "runs"
    for methods, refused in (("[pcl,dkel,dml]", None), ("[baseline]", r"teacher\.batchnorm: own there, ema here")):
        values = compose(*given, f"compare.methods={methods}")
        comparison = planned_of(values, [*given, f"compare.methods={methods}"], Invocation(()))
        with pytest.raises(ConfigError, match=refused) if refused else contextlib.nullcontext():
            module._refuse_others(runs, comparison, comparison.members())


def test_what_another_command_has_begun_meanwhile_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """A process that shares a comparison looks at each run when its turn comes, and not only at the start."""
    _, comparison = planned("compare.methods=[dkel]", "compare.seeds=[0]", "data=npz", "data.root=mine.npz")
    (variant, seed), *_ = comparison.members()
    for changed in ("optimizer.lr=0.3", "data.root=elsewhere/other.npz"):
        other, where = compose(*TINY, "data=npz", "data.root=mine.npz", changed), tmp_path / changed[:4]
        Run(other, module.member_folder(where, "dkel", 0)).describe()
        with pytest.raises(ConfigError, match=f"was trained with other settings .*{changed.split('=')[0]}"):
            module._trained(where, comparison, variant, seed, last=True)
        assert not [*where.rglob("failed.txt")]
    moved = compose(*TINY, "data=npz", "data.root=/elsewhere/mine.npz")
    Run(moved, module.member_folder(tmp_path / "moved", "dkel", 0)).describe()
    module._refuse_others(tmp_path / "moved", comparison, comparison.members())


@pytest.mark.slow
def test_a_member_that_fails_is_recorded_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["compare.methods=[baseline,{wild:['method=pcl','optimizer.lr=1e12']}]", "compare.seeds=[0]"]
    result = run_it(tmp_path, *overrides)
    assert "became NaN or infinite" in str(result.outcomes["wild", 0].failure)
    assert result.outcomes["baseline", 0].failure is None
    assert "NonFiniteError" in (tmp_path / "wild" / "seed_0" / "failed.txt").read_text()
    text = (tmp_path / "compare.md").read_text()
    assert "- wild, seed 0, failed: The training loss became NaN or infinite" in text
    assert "| wild | 0 | n/a |" in text
    assert [row["n"] for row in table(tmp_path)] == ["1", "0"]
    assert f"1 of 2 runs failed; the same with compare.folder={tmp_path} tries again." in capsys.readouterr().out


def test_a_comparison_of_which_nothing_is_left_fails(tmp_path: Path) -> None:
    with pytest.raises(DkelError, match="All 1 runs have failed, the first one so: The training loss became NaN"):
        run_it(tmp_path, "compare.methods=[{wild:['method=pcl','optimizer.lr=1e12']}]", "compare.seeds=[0]")


def fake_summary(accuracy: float, speed: float = 100.0, epochs: int = 2) -> dict[str, Any]:
    members = {"student_0": 0.1, "student_ensemble": 0.2, "teacher_0": accuracy, "teacher_ensemble": 0.8}
    test = {
        "epoch": epochs, "deployed": "teacher_0", "deployed_accuracy": accuracy, "accuracy": members,
        "nll": dict.fromkeys(members, 0.5), "calibration": dict.fromkeys(members, 0.03),
        "disagreement": None, "distance": 0.25,
    }  # fmt: skip
    memory = {"bytes": 2**20, "of": "process"}
    speeds = {"images_per_second": speed, "seconds": 1.0}
    return {"test": {"last": test, "best": None}, **speeds, "peak_memory": memory, "deployed_parameters": 10}


@pytest.mark.slow
def test_the_control_of_equal_compute_trains_as_long_as_the_reference_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: dict[str, int] = {}

    def trained(run: Run) -> None:
        label, epochs = run.folder.parent.name, run.values["trainer"]["max_epochs"]
        lengths[f"{label}/{run.folder.name}"] = epochs
        run.describe()
        run.write_json("summary.json", fake_summary(0.5, speed={"dkel": 40.0}.get(label, 100.0), epochs=epochs))

    monkeypatch.setattr(module, "train", trained)
    overrides = ("compare.methods=[dkel,baseline,baseline_long]", "trainer.max_epochs=9")
    run_it(tmp_path / "twin", *overrides)
    # 9 epochs at 40 images a second take as long as 22.5 at 100.
    assert lengths == {
        f"{label}/seed_{seed}": 23 if label == "baseline_long" else 9
        for label in ("dkel", "baseline", "baseline_long")
        for seed in (0, 1)
    }
    assert (
        "baseline_long: 23 epochs take as long as the 9 of dkel, by 100 against 40 training images a second"
        in (tmp_path / "twin" / "compare.md").read_text()
    )

    # Without the baseline beside it, a short run measures the speed.
    lengths.clear()
    run_it(tmp_path / "alone", "compare.methods=[dkel,baseline_long]", "trainer.max_epochs=9")
    assert lengths["baseline_long/measured"] == 3
    assert lengths["baseline_long/seed_0"] == lengths["baseline_long/seed_1"] == 23

    with pytest.raises(ConfigError, match="was trained as long as dkel, not baseline"):
        run_it(tmp_path / "twin", *overrides, "compare.reference=baseline")


# ---------------------------------------------------------------------- the table


def ended(folder: Path, label: str, seed: int, accuracy: float) -> RunRecord:
    where = folder / label / f"seed_{seed}"
    where.mkdir(parents=True)
    (where / "summary.json").write_text(json.dumps(fake_summary(accuracy)))
    return RunRecord(where)


def test_the_figures_of_a_member_are_those_of_its_deployed_network(tmp_path: Path) -> None:
    run = ended(tmp_path, "dkel", 0, 0.75)
    assert {column.name: run.figure(column.of) for column in COLUMNS} == {
        "last accuracy": 0.75, "selected accuracy": 0.75, "NLL": 0.5, "calibration error": 0.03,
        "students' ensemble accuracy": 0.2, "peer disagreement": None, "teacher distance": 0.25, "epochs": 2,
        "images per second": 100.0, "seconds": 1.0, "peak memory": 2**20, "parameters deployed": 10,
    }  # fmt: skip


def test_the_table_by_hand(tmp_path: Path) -> None:
    _, comparison = planned("compare.methods=[pcl,dkel]")
    accuracies = {"pcl": (0.90, 0.92), "dkel": (0.93, 0.94)}
    outcomes = {
        (label, seed): ended(tmp_path, label, seed, values[seed])
        for label, values in accuracies.items()
        for seed in (0, 1)
    }
    lines = markdown(comparison, outcomes, [])
    # Deviations 0.02 / sqrt 2 and 0.01 / sqrt 2.
    assert "| pcl | 2 | 91.00 ± 1.41 | 91.00 ± 1.41 | 0.5000 ± 0.0000 |" in "\n".join(lines)
    assert "| dkel | 2 | 93.50 ± 0.71 | 93.50 ± 0.71 |" in "\n".join(lines)
    # Differences 3 and 2 points: mean 2.5, error 0.5, t(1) 12.706, noncentrality 16.33.
    assert "| dkel | 2 | +2.50 | -3.85 to +8.85 | 8.17 |" in lines
    assert lines[-3:] == [
        "| label | last accuracy (%) | NLL | calibration error (%) "
        "| students' ensemble accuracy (%) | peer disagreement (%) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| dkel | +2.50 (-3.85 to +8.85) | +0.0000 (n/a) | +0.00 (n/a) | +0.00 (n/a) | n/a |",
    ]


def test_only_seeds_that_both_have_are_paired(tmp_path: Path) -> None:
    _, comparison = planned("compare.methods=[pcl,dkel]")
    outcomes = {("pcl", 0): ended(tmp_path, "pcl", 0, 0.9), ("dkel", 0): ended(tmp_path, "dkel", 0, 0.95)}
    outcomes |= {("pcl", 1): RunRecord(tmp_path, failure="NaN"), ("dkel", 1): ended(tmp_path, "dkel", 1, 0.1)}
    assert "| dkel | 1 | +5.00 | n/a | n/a |" in markdown(comparison, outcomes, [])
