#!/usr/bin/env bash
# What only a GPU can tell: the tests that need one, and the rows of docs/performance.md. Each command ends in ten minutes.
#
#   scripts/on_a_gpu.sh tests [FOLDER]    # pytest -m gpu, and ResNet-32 in bf16: every way to execute a step
#   scripts/on_a_gpu.sh speed [FOLDER]    # ResNet-32 in fp32, ResNet-18 at 64 pixels, and the memory of one side alone
#
# FOLDER (outputs/on_a_gpu) takes a page of each. No image is needed: random ones of the same shape stand for them.
set -uo pipefail

part=${1:?tests or speed}
folder=${2:-outputs/on_a_gpu}
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "PyTorch sees no GPU here." >&2 && exit 2; }
failed=0

measured() {
  timeout "$1" dkel task=benchmark trainer=gpu "benchmark.to=$folder/$2" "${@:3}" || failed=1
}

case $part in
  tests)
    timeout 330 python -m pytest -q -m gpu || failed=1
    measured 240 gpu_resnet32_bf16 experiment=cifar100 precision=bf16 benchmark.rounds=5
    ;;
  speed)
    measured 200 gpu_resnet32 experiment=cifar100 benchmark.rounds=3
    measured 200 gpu_tiny_resnet18_bf16 experiment=tinyimagenet precision=bf16 benchmark.rounds=3
    measured 150 gpu_captured_alone experiment=cifar100 precision=bf16 "benchmark.sides=[cuda_graph_compiled]"
    ;;
  *) echo "Unknown part $part: tests or speed." >&2 && exit 2 ;;
esac
exit $failed
