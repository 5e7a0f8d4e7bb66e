#!/usr/bin/env bash
# What only a GPU can tell: the tests that need one, and the time of a training step in fp32 and bf16, into FOLDER.
#
#   scripts/on_a_gpu.sh [FOLDER]    # outputs/on_a_gpu
set -uo pipefail

folder=${1:-outputs/on_a_gpu}
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "PyTorch sees no GPU here." >&2 && exit 2; }
mkdir -p "$folder"
failed=0
python -m pytest -q -m gpu || failed=1
for precision in fp32 bf16; do
  python scripts/benchmark.py --device cuda --precision "$precision" --steps 100 --warmup 10 > "$folder/resnet32_$precision.csv" || failed=1
done
exit $failed
