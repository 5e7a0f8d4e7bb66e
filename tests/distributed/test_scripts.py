"""The scripts that start a run on several machines, as far as one machine goes: gloo, and a stand-in for srun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dkel_lightning.app.cli.checks import planned
from dkel_lightning.app.cli.invocation import Invocation
from tests.compose import check_arguments, compose

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
TINY: tuple[str, ...] = (
    "trainer.accelerator=cpu",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "execution.threads=1",
)
TINY += ("trainer.limit_test_batches=1", "data.limit=100", "data.batch_size=8")

SRUN = """#!/usr/bin/env bash
# Starts two tasks as srun does; with SIGNALLED naming a file, signals them once that is there.
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
  pids+=($!)
done
if [ -n "${SIGNALLED:-}" ]; then
  while [ ! -f "$SIGNALLED" ] && kill -0 "${pids[0]}"; do sleep 0.1; done
  kill -USR1 "${pids[@]}"
fi
code=0
for pid in "${pids[@]}"; do
  wait "$pid" || { own=$?; (( own > code )) && code=$own; }
done
exit $code
"""


def start(script: str, cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{cwd / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables, "PATH": path}
    command = ["bash", str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=380, check=False, env=environment)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_that_bash_can_read(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(script, os.X_OK)


def test_several_machines_without_a_common_folder_are_refused(tmp_path: Path) -> None:
    done = start("torchrun.sh", tmp_path, NODES="2", PROCESSES="1")
    assert done.returncode != 0
    assert "several machines need one folder: set RUN" in done.stderr


@pytest.mark.long
@pytest.mark.timeout(400)
def test_torchrun_trains_in_two_processes_and_goes_on_when_started_again(tmp_path: Path) -> None:
    arguments = (*TINY, "trainer.max_epochs=1")
    done = start("torchrun.sh", tmp_path, *arguments, PROCESSES="2", RUN="run")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "outputs"] == ["run"]
    assert len(re.findall(r"^epoch 1/1", done.stdout, re.MULTILINE)) == 1  # only the first process speaks
    again = start("torchrun.sh", tmp_path, *arguments, PROCESSES="2", RUN="run")
    assert again.returncode == 0, again.stderr
    assert "The run was complete already" in again.stdout


@pytest.mark.long
@pytest.mark.timeout(800)
def test_a_slurm_job_saves_when_its_time_is_over_goes_into_the_queue_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    requeue = '#!/usr/bin/env bash\necho "$@" >> requeued\n'
    for name, content in (("srun", SRUN), ("scontrol", requeue)):
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "1077", "SLURM_JOB_NAME": "dkel", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    slurm |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost"}
    run = tmp_path / "outputs" / "slurm" / "1077"
    arguments = (*TINY, "trainer.max_epochs=40")
    done = start("slurm.sh", tmp_path, *arguments, **slurm, SIGNALLED=str(run / "metrics.csv"))
    assert done.returncode == 138, done.stderr
    assert "Stopped by SIGUSR1" in done.stdout
    assert (tmp_path / "requeued").read_text() == "requeue 1077\n"
    assert not (run / "summary.json").exists()
    again = start("slurm.sh", tmp_path, *arguments, **slurm)
    assert again.returncode == 0, again.stderr
    assert (run / "summary.json").is_file()
    epochs = [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert epochs == [str(epoch) for epoch in range(40)]
    assert [path.name for path in run.parent.iterdir()] == ["1077"]


KILLED_ONCE = """#!/usr/bin/env bash
# Stands for srun; the first time it kills the command as soon as it has taken its folder.
if [ -f began ]; then exec "$@"; fi
touch began
"$@" &
while ! ls outputs/cifar100/7/config.yaml 2> /dev/null; do kill -0 $! || exit 3; sleep 0.01; done
kill -KILL $!; wait $!
"""


@pytest.mark.slow
def test_the_recipe_for_slurm_goes_on_with_a_run_that_was_killed_right_after_it_took_its_folder(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(KILLED_ONCE)
    (tmp_path / "bin" / "srun").chmod(0o755)
    page = (ROOT / "docs" / "reliability.md").read_text()
    (recipe,) = re.findall(r"```bash\n(#SBATCH.*?)```", page, re.DOTALL)
    tiny = " ".join((*TINY, "trainer.max_epochs=1", "callbacks.progress=none"))
    (tmp_path / "recipe.sh").write_text(recipe.replace("experiment=cifar100", f"experiment=quickstart {tiny}"))
    slurm = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    run = tmp_path / "outputs" / "cifar100" / "7"
    start(str(tmp_path / "recipe.sh"), tmp_path, **slurm)
    assert not (run / "provenance.json").exists()
    again = start(str(tmp_path / "recipe.sh"), tmp_path, **slurm)
    assert (run / "summary.json").is_file(), again.stderr
    assert [path.name for path in run.parent.iterdir()] == ["7"]


NOTING = """#!/usr/bin/env bash
# Notes how and what it was called with; a machine without GPUs.
if [ "$1" = -c ]; then echo 0; exit; fi
line=$(printf '%s\\x1f' "${OMP_NUM_THREADS:-}" "${0##*/}" "$@")
echo "$line" >> calls # at once: others write too
"""


def calls(script: str, cwd: Path, *arguments: str) -> list[tuple[str, list[str]]]:
    """Give the threads and the arguments of each command of this package that a script starts."""
    binaries = cwd / "bin"
    binaries.mkdir()
    for name in ("python", "dkel"):
        (binaries / name).write_text(NOTING)
        (binaries / name).chmod(0o755)
    done = start(script, cwd, *arguments, WORKERS="2")
    assert done.returncode == 0, done.stderr
    found = []
    for line in (cwd / "calls").read_text().splitlines():
        threads, program, *rest = line.split("\x1f")[:-1]
        if program == "dkel":
            found.append((threads, rest))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "labels", "epochs"),
    [("small", 12, 50), ("cifar10", 11, 300), ("cifar100", 11, 300), ("tinyimagenet", 11, 100)],
)
def test_each_process_gets_the_same_comparison_and_the_last_command_shows_the_table(
    protocol: str, labels: int, epochs: int, tmp_path: Path
) -> None:
    data = tmp_path / "images.npz"
    *workers, (_, shown) = calls("real_images.sh", tmp_path, protocol, str(data), "out", "execution=eager")
    assert workers == [("1", shown)] * 2
    assert {"execution=eager", "compare.folder=out", f"data.root={data}", "trainer=cpu"} <= {*shown}
    values = compose(*shown)
    comparison = planned(values, shown, Invocation(()))
    assert len([*comparison.members()]) == 5 * labels
    assert values["trainer"]["max_epochs"] == epochs


def test_tuning_is_two_sweeps_over_the_seeds_of_the_protocol(tmp_path: Path) -> None:
    found = [
        arguments for _, arguments in calls("real_images.sh", tmp_path, "tuning", str(tmp_path / "images.npz"), "out")
    ]
    assert [arguments[0] for arguments in found] == ["-m", "-m"]
    assert [arguments[-1] for arguments in found] == ["hydra.sweep.dir=out/lambda", "hydra.sweep.dir=out/rate"]
    for arguments in found:
        assert "seed=0,1,2" in arguments
        check_arguments(arguments[1:], multirun=True)
        assert sum(item.endswith(("=0.1,0.3,1", "=0.99,0.999,{0:0.99,0.1:0.999}")) for item in arguments) == 1


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = start("on_a_gpu.sh", tmp_path)
    assert (done.returncode, done.stderr) == (2, "PyTorch sees no GPU here.\n")
