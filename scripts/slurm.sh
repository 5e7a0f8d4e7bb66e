#!/usr/bin/env bash
# One run as a job of SLURM, one task per GPU: sbatch scripts/slurm.sh experiment=cifar100
# Two machines: sbatch --nodes=2 scripts/slurm.sh experiment=cifar100. A sweep: see docs/distributed.md.
#
#SBATCH --job-name=dkel
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm_%j.out
#
# Five minutes before its time is over SLURM signals the tasks, which save and stop; the job goes back into the queue and
# goes on from there. A preempted job gets SIGTERM, which does the same, and is put back by SLURM itself.
set -euo pipefail

# Your environment here, such as: source .venv/bin/activate

run=outputs/slurm/$SLURM_JOB_ID
arguments=(trainer=ddp "trainer.devices=$SLURM_NTASKS_PER_NODE" "trainer.num_nodes=$SLURM_JOB_NUM_NODES" "$@")
if [ -f "$run/config.yaml" ]; then
  arguments+=("resume=$run")
else
  arguments+=("hydra.run.dir=$run")
fi

code=0
srun --kill-on-bad-exit=1 dkel "${arguments[@]}" || code=$?
if [ "$code" = 138 ]; then # 128 + SIGUSR1: saved
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
