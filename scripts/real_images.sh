#!/usr/bin/env bash
# The comparisons on real images, on GPUs or CPU cores. Finished runs are kept; repeat the command to continue.
#
#   scripts/real_images.sh small cifar100.npz results/small           # docs/results/cifar100: 30 minutes or more per run on a core
#   scripts/real_images.sh tuning cifar100.npz results/tuning         # lambda and the EMA rate, by validation alone
#   scripts/real_images.sh cifar10 DATA results/cifar10               # the full protocols, for GPUs: 300 epochs of
#   scripts/real_images.sh cifar100 DATA results/cifar100             # CIFAR, 100 of TinyImageNet, five seeds
#   scripts/real_images.sh tinyimagenet DATA results/tinyimagenet
#
# One worker per GPU, or per core without GPUs, shares the runs of a comparison; WORKERS sets another number.
# Further arguments are overrides, such as trainer.max_epochs=10. Run times of the full protocols have not been measured.
set -euo pipefail

protocol=${1:?small, tuning, cifar10, cifar100 or tinyimagenet}
data=${2:?the data: an .npz file as docs/own_data.md describes, or the folder of the data set}
folder=${3:?the folder of the results}
shift 3

arguments=("data.root=$data" precision=bf16)
variants="single,single_smoothing,baseline_smoothing"
case $protocol in
  small | tuning)
    arguments+=(experiment=own_data data=npz backbone=resnet20 data.padding=4 data.flip=true data.limit=5000
      data.batch_size=128 optimizer=sgd scheduler=multistep trainer.gradient_clip_val=null trainer.max_epochs=50
      trainer.check_val_every_n_epoch=5)
    variants+=",dkel_released_fitted"
    ;;
  cifar10 | cifar100 | tinyimagenet) arguments+=("experiment=$protocol") ;;
  *) echo "Unknown protocol $protocol: small, tuning, cifar10, cifar100 or tinyimagenet." >&2 && exit 2 ;;
esac
command=(dkel -m "${arguments[@]}" "$@")

run() { # pass SIGTERM on, and wait for the run that is being saved
  "$@" &
  local child=$!
  trap 'kill -TERM $child; wait $child; exit 143' TERM
  wait "$child"
}

compare() { # two sweeps share a folder, and so a table; a run that failed does not keep the second from starting
  local methods="baseline,pcl,dkel,dkel_released,dml,one,mean_teacher,ffl"
  run "${command[@]}" "$@" seed=0,1,2,3,4 "method=$methods" "sweep.folder=$folder" || true
  run "${command[@]}" "$@" seed=0,1,2,3,4 "variant=$variants" "sweep.folder=$folder"
}

if [ "$protocol" = tuning ]; then # by validation, to be read from runs.csv; nothing is chosen by the test figures
  "${command[@]}" seed=0,1,2 method.rampup.scale=0.1,0.3,1 "sweep.folder=$folder/lambda"
  exec "${command[@]}" seed=0,1,2 protocol.ema.decay_share=null "protocol.ema.decay=0.99,0.999,{0:0.99,0.1:0.999}" \
    "sweep.folder=$folder/rate"
fi

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
workers=${WORKERS:-$([ "$gpus" -gt 0 ] && echo "$gpus" || echo "$cores")}
IFS=, read -r -a visible <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((gpus > 0 ? gpus - 1 : 0)))}"
mkdir -p "$folder"
for ((k = 0; k < workers; k++)); do
  if [ "$gpus" -gt 0 ]; then
    CUDA_VISIBLE_DEVICES=${visible[k % gpus]} compare >> "$folder/worker_$k.log" 2>&1 &
  else
    OMP_NUM_THREADS=1 compare trainer=cpu >> "$folder/worker_$k.log" 2>&1 &
  fi
done
# SIGTERM saves what is trained; bash lets what it starts in the background ignore SIGINT.
trap 'trap - INT TERM; kill -TERM $(jobs -p) 2> /dev/null; wait; exit 130' INT TERM
echo "$workers processes at work; they write into $folder/worker_*.log"
wait
exec dkel task=table "sweep.folder=$folder" sweep.reference=baseline
