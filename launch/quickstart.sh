#!/usr/bin/env bash
# From a fresh Debian or Ubuntu machine to a language model that has learned real text: installs what is missing, builds,
# prepares the King James Bible (4.4 MB, package bible-kjv), trains a small Llama on two ranks with sharded, compressed
# optimizer state, checks and evaluates its checkpoint and prints a sample. A second call reuses what is there.
#
#   launch/quickstart.sh [--ranks N] [--set path=value]... [--cpu] [--run-dir DIR]
#
#   --ranks N          processes under mpirun (default 2)
#   --set path=value   any setting of docs/configuration.md, passed to `flashshard train`
#   --cpu              never build or use CUDA
#   --run-dir DIR      where the run goes (default runs/quickstart); an unfinished run there is resumed
set -euo pipefail
cd "$(dirname "$0")/.."

ranks=2 run_dir=runs/quickstart cuda=AUTO settings=()
usage() { sed -n '2,12s/^# \{0,1\}//p' "$0"; }
while [ $# -gt 0 ]; do
  case "$1" in
    --ranks) ranks=${2:?--ranks needs a number}; shift 2 ;;
    --set) settings+=(--set "${2:?--set needs path=value}"); shift 2 ;;
    --run-dir) run_dir=${2:?--run-dir needs a folder}; shift 2 ;;
    --cpu) cuda=OFF; shift ;;
    -h|--help) usage; exit 0 ;;
    *) echo "quickstart.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
done
case "$ranks" in ''|*[!0-9]*|0) echo "quickstart.sh: --ranks takes a positive number, not '$ranks'" >&2; exit 2 ;; esac

step() { printf '\n--- %s\n' "$*"; }

step "packages"
launch/install_dependencies.sh

step "build"
# CUDA code is of use only where a device is visible.
if [ "$cuda" = AUTO ] && ! { command -v nvcc && command -v nvidia-smi && nvidia-smi -L; } >/dev/null 2>&1; then cuda=OFF; fi
# A folder that has been configured before keeps its tests.
only_the_program=(-DFLASHSHARD_TESTS=OFF -DFLASHSHARD_BENCHMARKS=OFF)
[ -f build/CMakeCache.txt ] && only_the_program=()
cmake --preset release -DFLASHSHARD_CUDA="$cuda" "${only_the_program[@]}" >/dev/null
cmake --build build -j "$(nproc)" --target flashshard

step "data"
mkdir -p data runs
if [ ! -f data/kjv/dataset.json ]; then
  bible -f Gen1:1-Rev22:21 > data/kjv.txt  # one verse a line, its place in front
  build/flashshard prepare --input data/kjv.txt --output data/kjv
fi

step "train on $ranks ranks"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# Unbound: a rank with several threads must not be tied to one core.
mpirun -n "$ranks" --oversubscribe --bind-to none build/flashshard train --config launch/configs/quickstart.textproto \
  --set run.dir="$run_dir" "${settings[@]}"

step "the checkpoint"
build/flashshard verify "$run_dir"
build/flashshard inspect "$run_dir"
build/flashshard hash "$run_dir"

step "held-out text"
build/flashshard eval --checkpoint "$run_dir" --data data/kjv

step "a sample"
build/flashshard generate --checkpoint "$run_dir" --prompt "And it came to pass" --tokens 400 --temperature 0.8 --seed 1
