"""The scripts that start a run on several machines, as far as one machine goes: gloo, and a stand-in for srun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert "Resume with: dkel resume=" in done.stdout
    assert (tmp_path / "requeued").read_text() == "requeue 1077\n"
    assert not (run / "summary.json").exists()
    again = start("slurm.sh", tmp_path, *arguments, **slurm)
    assert again.returncode == 0, again.stderr
    assert (run / "summary.json").is_file()
    epochs = [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert epochs == [str(epoch) for epoch in range(40)]
    assert [path.name for path in run.parent.iterdir()] == ["1077"]
