#!/usr/bin/env bash
# Everything that potstill should be measured with on a GPU, in at most ten minutes: the loss, training steps, generation
# and NCCL. Needs this checkout and an environment with potstill's dependencies; no network, no data, no weights.
#
#     benchmarks/gpu.sh > gpu.jsonl                               # with the python of the environment that is active
#     PYTHON=.venv/bin/python benchmarks/gpu.sh > gpu.jsonl
#     benchmarks/gpu.sh --device cpu --tiny     # tries the program out in a minute; each measurement starts a process
#
# `benchmarks/gpu.py --help` has the options and explains the lines.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec timeout --kill-after=10 600 "${PYTHON:-python3}" "$root/benchmarks/gpu.py" "$@"
