#!/usr/bin/env bash
# clang-tidy over our own sources (checks in .clang-tidy), with the compile commands of the release build. The static analyzer
# takes more than twice the time of all other checks: only `tests/lint.sh --analyzer` (the nightly) runs it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f build/compile_commands.json ] || { echo "error: no build/compile_commands.json; run tests/run.sh first" >&2; exit 2; }
checks=(--checks=-clang-analyzer-*)
[ "${1:-}" = --analyzer ] && checks=()

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# xargs ends with an error when any clang-tidy does; counts of suppressed warnings go to stderr and are of no use.
if ! git ls-files 'kernels/*.cc' 'comm/*.cc' 'optim/*.cc' 'runtime/*.cc' 'launch/*.cc' |
    xargs -P "$(nproc)" -n 3 clang-tidy --quiet -p build --warnings-as-errors='*' "${checks[@]}" >"$log" 2>/dev/null; then
  cat "$log"
  echo "clang-tidy found something, see above" >&2
  exit 1
fi
echo "clang-tidy: $(git ls-files 'kernels/*.cc' 'comm/*.cc' 'optim/*.cc' 'runtime/*.cc' 'launch/*.cc' | wc -l) sources, no finding"
