#!/usr/bin/env bash
# The comparisons on real images, on whatever device there is. What has ended stands: call it again to go on.
#
#   scripts/real_images.sh small cifar100.npz results/small           # docs/results/cifar100: half an hour or more of a core a run
#   scripts/real_images.sh tuning cifar100.npz results/tuning         # lambda and the EMA rate, by validation alone
#   scripts/real_images.sh cifar10 DATA results/cifar10               # the full protocols, for GPUs: 300 epochs of
#   scripts/real_images.sh cifar100 DATA results/cifar100             # CIFAR, 100 of TinyImageNet, five seeds
#   scripts/real_images.sh tinyimagenet DATA results/tinyimagenet
#
# One process a GPU, or a core of a machine without GPUs, shares the runs of a comparison; WORKERS sets another number.
# More arguments are overrides, such as compare.methods=[dkel,kd]. The hours of the full protocols are not measured.
set -euo pipefail

protocol=${1:?small, tuning, cifar10, cifar100 or tinyimagenet}
data=${2:?the data: the file cifar100.npz of docs/own_data.md, or the folder of the data set}
folder=${3:?the folder of the results}
shift 3

small=(experiment=own_data data=npz "data.root=$data" backbone=resnet20 data.padding=4 data.flip=true data.limit=5000
  trainer.max_epochs=50 trainer.check_val_every_n_epoch=5 precision=bf16)
alone="'method=baseline','method.peers=1','teacher=none'"
single="{single:[$alone]},{single_smoothing:[$alone,'targets.label_smoothing=0.1']}"
labels="baseline,$single,baseline_smoothing,pcl,dkel,dkel_released,dml,one,mean_teacher,ffl"
fitted="{dkel_released_fitted:['method=dkel_released','method.rampup.epochs=null','method.rampup.share=0.27']}"
seeds="compare.seeds=[0,1,2,3,4]"
case $protocol in
  small) arguments=("${small[@]}" "$seeds" "compare.methods=[$labels,$fitted]") ;;
  tuning)
    # By validation, which sweep.csv has beside the test figures that nothing is chosen by; a finished job stands.
    sweep=(dkel -m "${small[@]}" method=dkel seed=0,1,2 "$@")
    "${sweep[@]}" method.rampup.scale=0.1,0.3,1 "hydra.sweep.dir=$folder/lambda"
    exec "${sweep[@]}" protocol.ema.decay_share=null "protocol.ema.decay=0.99,0.999,{0:0.99,0.1:0.999}" \
      "hydra.sweep.dir=$folder/rate"
    ;;
  cifar10 | cifar100 | tinyimagenet)
    arguments=("experiment=$protocol" precision=bf16 "data.root=$data" "$seeds" "compare.methods=[$labels]")
    ;;
  *) echo "Unknown protocol $protocol: small, tuning, cifar10, cifar100 or tinyimagenet." >&2 && exit 2 ;;
esac
command=(dkel task=compare "${arguments[@]}" "$@" "compare.folder=$folder")

gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
workers=${WORKERS:-$([ "$gpus" -gt 0 ] && echo "$gpus" || echo "$cores")}
IFS=, read -r -a visible <<< "${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((gpus > 0 ? gpus - 1 : 0)))}"
mkdir -p "$folder"
for ((k = 0; k < workers; k++)); do
  if [ "$gpus" -gt 0 ]; then
    CUDA_VISIBLE_DEVICES=${visible[k % gpus]} "${command[@]}" >> "$folder/worker_$k.log" 2>&1 &
  else
    OMP_NUM_THREADS=1 "${command[@]}" trainer=cpu >> "$folder/worker_$k.log" 2>&1 &
  fi
done
# SIGTERM saves what is trained; bash lets what it starts in the background ignore SIGINT.
trap 'trap - INT TERM; kill -TERM $(jobs -p) 2> /dev/null; wait; exit 130' INT TERM
echo "$workers processes at work; they write into $folder/worker_*.log"
wait
exec "${command[@]}" $([ "$gpus" -gt 0 ] || echo trainer=cpu)
