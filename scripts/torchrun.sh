#!/usr/bin/env bash
# One run on all GPUs of one machine, or of several machines that each start this script.
#
#   scripts/torchrun.sh experiment=cifar100
#   RUN=outputs/two NODES=2 NODE_RANK=0 MASTER_ADDR=host1 scripts/torchrun.sh experiment=cifar100   # on host1
#   RUN=outputs/two NODES=2 NODE_RANK=1 MASTER_ADDR=host1 scripts/torchrun.sh experiment=cifar100   # on the other
#   PROCESSES=2 scripts/torchrun.sh trainer.accelerator=cpu                                         # two CPU processes
#
# RUN is the run's folder, which all machines must see. Started again with the same RUN, it goes on.
set -euo pipefail

NODES=${NODES:-1}
PROCESSES=${PROCESSES:-$(python -c 'import torch; print(torch.cuda.device_count())')}
if [ "$PROCESSES" -lt 1 ]; then
  echo "PyTorch sees no GPU here: set PROCESSES=2 and add trainer.accelerator=cpu." >&2
  exit 2
fi
if [ "$NODES" = 1 ]; then
  RUN=${RUN:-outputs/torchrun/$(date +%Y-%m-%d_%H-%M-%S)}
  meeting=(--standalone)
else
  : "${RUN:?several machines need one folder: set RUN}" "${NODE_RANK:?0 on the first machine, 1 on the second, ...}"
  meeting=(--node-rank "$NODE_RANK" --master-addr "${MASTER_ADDR:?the first machine}" --master-port "${MASTER_PORT:-29500}")
fi

# Looked at before the processes start, and these start on all machines at once.
arguments=(trainer=ddp "trainer.devices=$PROCESSES" "trainer.num_nodes=$NODES" "$@")
if [ -f "$RUN/config.yaml" ]; then
  arguments+=("resume=$RUN")
else
  arguments+=("hydra.run.dir=$RUN")
fi
exec python -m torch.distributed.run "${meeting[@]}" --nnodes "$NODES" --nproc-per-node "$PROCESSES" \
  -m dkel_lightning "${arguments[@]}"
