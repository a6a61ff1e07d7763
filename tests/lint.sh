#!/usr/bin/env bash
# clang-tidy over our own sources (checks in .clang-tidy), with the compile commands of the release build.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f build/compile_commands.json ] || { echo "error: no build/compile_commands.json; run tests/run.sh first" >&2; exit 2; }
git ls-files 'kernels/*.cc' 'comm/*.cc' 'optim/*.cc' 'runtime/*.cc' 'launch/*.cc' |
  xargs -P "$(nproc)" -n 4 clang-tidy --quiet -p build --warnings-as-errors='*' 2> >(grep -v 'warnings generated\|warning generated' >&2 || true)
