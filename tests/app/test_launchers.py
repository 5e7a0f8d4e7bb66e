"""Sweeps through other launchers and sweepers: checked before they start, each run for real once."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dkel_lightning.app.cli import composition
from dkel_lightning.app.config import choices, extras
from dkel_lightning.app.runs.groups import read_sweep
from dkel_lightning.app.runs.kinds import NOTE
from dkel_lightning.app.runs.records import RunRecord
from dkel_lightning.errors import ConfigError
from dkel_lightning.runtime import ranks
from tests.compose import check_arguments

PRESETS = sorted(
    path.relative_to(choices.folder()).with_suffix("").as_posix()
    for path in (choices.folder() / "hydra").rglob("*.yaml")
)
SLURM = ["hydra/launcher=submitit_slurm", "seed=0,1"]


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_arguments(list(arguments), None, True)
    return str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_takes_the_place_of_what_the_plugin_brings_and_holds_only_what_that_takes(
    preset: str, recwarn: pytest.WarningsRecorder
) -> None:
    group, name = preset.rsplit("/", 1)
    others = ["hydra/sweeper=optuna"] if group.endswith("sampler") else []
    found = composition.compose([*others, f"{group}={name}"], with_hydra=True)
    node = OmegaConf.to_container(OmegaConf.select(found, group.replace("/", ".")), resolve=False)
    assert isinstance(node, dict)
    written = OmegaConf.to_container(OmegaConf.load(choices.folder() / f"{preset}.yaml"), resolve=False)
    assert isinstance(written, dict)
    written.pop("defaults", None)
    assert {key: node[key] for key in written} == written
    module, _, kind = node["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), kind)
    taken = inspect.signature(target).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        assert node.keys() - {"_target_"} <= taken.keys()
    # Hydra warns where a file and a plugin's schema share a name.
    assert not [str(w.message) for w in recwarn if "ConfigStore" in str(w.message)]


def test_optuna_maximises_and_is_seeded() -> None:
    found = composition.compose(["hydra/sweeper=optuna"], with_hydra=True).hydra.sweeper
    assert found.direction == "maximize"
    assert found.sampler == {
        "_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 10, "multivariate": False,
    }  # fmt: skip


def test_a_range_needs_a_sweeper_that_searches() -> None:
    message = refused("optimizer.lr=interval(0.01,0.3)")
    assert message == (
        "optimizer.lr=interval(0.01,0.3) is a range to search in: add hydra/sweeper=optuna, or list values."
    )
    check_arguments(["hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(0.01,0.3))"], None, True)


def test_both_ends_of_a_range_are_checked_before_the_first_trial() -> None:
    optuna = "hydra/sweeper=optuna"
    assert "optimizer.lr must be a number between 0 and" in refused(optuna, "optimizer.lr=interval(-0.1,0.3)")
    assert "data.validation must be a number above 0 and up to 0.9, got 1.5" in refused(
        optuna, "data.validation=interval(0.1,1.5)"
    )
    assert "Unknown key optimizer.lrr. Did you mean optimizer.lr?" in refused(optuna, "optimizer.lrr=interval(0,1)")
    assert "data.batch_size must be a whole number" in refused(optuna, "data.batch_size=interval(8.0,64.0)")


@pytest.mark.parametrize(
    ("choice", "extra"),
    [
        ("hydra/launcher=joblib", "joblib"),
        ("hydra/launcher=submitit_local", "submitit"),
        ("hydra/launcher=submitit_slurm", "submitit"),
        ("hydra/sweeper=optuna", "optuna"),
    ],
)
def test_an_extra_that_is_missing_is_named_before_the_first_job(
    choice: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "EXTRAS", {extra: (f"{extras.EXTRAS[extra][0]}",)})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    # Without Optuna its samplers are not there either; the files of this library stand for them.
    assert f'pip install "dkel-lightning[{extra}]"' in refused(choice, "seed=0,1")


def test_ddp_in_a_sweep_is_left_to_slurm_which_needs_a_task_a_device() -> None:
    gpus = ["trainer=ddp", "trainer.devices=4", "hydra.launcher.tasks_per_node=4", "hydra.launcher.gpus_per_node=4"]
    check_arguments([*SLURM, *gpus], None, True)
    check_arguments([*SLURM, "trainer=ddp"], None, True)  # all that the job sees
    check_arguments([*SLURM, *gpus, "trainer.num_nodes=2", "hydra.launcher.nodes=2"], None, True)
    message = refused(*SLURM, "trainer=ddp", "trainer.devices=4")
    assert (
        "trainer.devices=4, trainer.num_nodes=1 need as many tasks of SLURM: hydra.launcher.tasks_per_node" in message
    )
    assert "hydra.launcher.nodes is 1" in refused(*SLURM, *gpus, "trainer.num_nodes=2")
    assert "hydra/launcher=submitit_slurm" in refused("hydra/launcher=joblib", "trainer=ddp", "seed=0,1")


@pytest.mark.parametrize(
    ("variables", "several", "first"),
    [
        ({}, False, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, True, True),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, True, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, True, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True, True),
    ],
)
def test_who_writes_is_known_from_what_started_the_processes(
    variables: dict[str, str], several: bool, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (ranks.is_one_of_several(), ranks.is_first()) == (several, first)


# ---------------------------------------------------------------------- for real

TINY: tuple[str, ...] = (
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
)
TINY += ("trainer.limit_test_batches=1", "execution.threads=1", "data.limit=100")


def sweep(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dkel_lightning", "-m", "hydra.sweep.dir=sweep", *TINY, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=280, check=False, env=environment)


def states(folder: Path) -> list[str]:
    return [
        json.loads((folder / str(n) / "job.json").read_text())["state"] for n in range(len([*folder.glob("[0-9]")]))
    ]


@pytest.mark.long
def test_optuna_searches_through_parallel_jobs(tmp_path: Path) -> None:
    search = ["hydra/sweeper=optuna", "hydra/launcher=joblib", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2"]
    done = sweep(tmp_path, *search, "optimizer.lr=tag(log,interval(0.01,0.3))")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sweep"
    assert states(folder) == ["finished", "finished"]
    found = OmegaConf.load(folder / "optimization_results.yaml")
    objectives = [RunRecord(folder / number).objective for number in "01"]
    assert found.best_value == max(value for value in objectives if value is not None)
    rates = [(job.overrides or {})["optimizer.lr"] for job in read_sweep(folder).jobs]
    assert len({*rates}) == 2
    assert all(0.01 <= float(rate) <= 0.3 for rate in rates)
    assert "## Search, best first" in (folder / "sweep.md").read_text()
    # Seeded: gone on with, the same trials are proposed, and finished ones are not trained again.
    again = sweep(tmp_path, *search, "optimizer.lr=tag(log,interval(0.01,0.3))")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("has finished before") == 2


@pytest.mark.long
def test_a_failed_trial_does_not_end_a_search_and_is_left_out_when_it_goes_on(tmp_path: Path) -> None:
    search = ["hydra/sweeper=optuna", "hydra.sweeper.sampler.n_startup_trials=1", "optimizer.lr=interval(1e29,1e30)"]
    done = sweep(tmp_path, *search, "hydra.sweeper.n_trials=2")
    assert done.returncode == 1
    assert "Error: No trial of the search has finished." in done.stderr
    assert "Error: 2 jobs of the sweep failed: 0, 1." in done.stderr
    assert "Traceback" not in done.stderr
    again = sweep(tmp_path, *search, "hydra.sweeper.n_trials=2")
    assert again.stdout.count("has failed before; the search has gone on without it") == 2
    assert "became NaN" in json.loads((tmp_path / "sweep" / "0" / "job.json").read_text())["message"]


@pytest.mark.long
def test_joblib_runs_all_jobs_names_those_that_failed_and_goes_on_with_the_rest(tmp_path: Path) -> None:
    arguments = ["hydra/launcher=joblib", "optimizer.lr=1e30,0.1", "seed=0,1"]
    done = sweep(tmp_path, *arguments)
    assert done.returncode == 1
    assert states(tmp_path / "sweep") == ["failed", "failed", "finished", "finished"]
    assert "Error: 2 jobs of the sweep failed: 0, 1." in done.stderr
    again = sweep(tmp_path, *arguments)
    assert again.returncode == 1
    assert again.stdout.count("has finished before") == 2
    assert re.search(r"\| 0.1 \| 2 \|", (tmp_path / "sweep" / "sweep.md").read_text())


@pytest.mark.long
def test_submitits_local_executor_runs_each_job_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = sweep(tmp_path, "hydra/launcher=submitit_local", "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert states(tmp_path / "sweep") == ["finished", "finished"]
    logs = [*(tmp_path / "sweep" / ".submitit").rglob("*_log.out")]
    assert len(logs) == 2
    assert all("epoch 1/1" in log.read_text() for log in logs)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_that_are_refused_in_other_processes_are_named_and_leave_what_lies_there(
    tmp_path: Path, launcher: str
) -> None:
    assert sweep(tmp_path, "seed=0,1").returncode == 0
    notes = [tmp_path / "sweep" / number / NOTE for number in "01"]
    before = [note.read_text() for note in notes]
    done = sweep(tmp_path, f"hydra/launcher={launcher}", "seed=2,0,3")
    assert done.returncode == 1
    assert done.stderr.endswith("Error: 2 jobs of the sweep failed: 0, 1.\n")
    assert "sweep holds other jobs under 0, 1: in a folder of its own this sweep is run by: " in done.stdout
    assert done.stdout.rstrip().endswith("hydra.sweep.dir=sweep_1")
    assert [note.read_text() for note in notes] == before
    assert [job.seed for job in read_sweep(tmp_path / "sweep").jobs] == ["0", "1", "3"]
    assert states(tmp_path / "sweep") == ["finished"] * 3
    # Of another sweep, which names nobody's folder.
    again = sweep(tmp_path, f"hydra/launcher={launcher}", "seed=0,1")
    assert (again.returncode, "holds other jobs" in again.stdout) == (0, False)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_the_processes_of_joblib_end_with_the_one_of_the_sweep(tmp_path: Path) -> None:
    arguments = ["-m", "hydra.sweep.dir=sweep", *TINY, "trainer.max_epochs=5000", "hydra/launcher=joblib", "seed=0,1"]
    with (tmp_path / "said").open("w") as said:
        main = subprocess.Popen(
            [sys.executable, "-m", "dkel_lightning", *arguments],
            cwd=tmp_path,
            stdout=said,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 200
        while not (tmp_path / "sweep" / "1" / "metrics.csv").is_file() and time.monotonic() < deadline:
            time.sleep(0.5)
        children = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()
        workers = [pid for pid in children if "popen_loky" in Path(f"/proc/{pid}/cmdline").read_text()]
        main.kill()
        main.wait()
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not [pid for pid in workers if _runs(pid)]


def _runs(pid: str) -> bool:
    try:
        return "popen_loky" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
