#!/usr/bin/env bash
# The fuzz targets of tests/fuzz with clang's libFuzzer and its address and undefined-behaviour sanitizers: part of the nightly, not of CI.
# What adds coverage is kept in build-libfuzzer/found; a finding ends the script and lies in build-libfuzzer.
#   tests/libfuzzer.sh                   ten minutes of each
#   tests/libfuzzer.sh SECONDS NAME...   so long of these
set -euo pipefail
cd "$(dirname "$0")/.."
build=build-libfuzzer
seconds=${1:-600}
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(ls tests/fuzz/corpus)

if ! command -v clang++ >/dev/null || ! ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a >/dev/null 2>&1; then
  apt-get install -y --no-install-recommends clang libclang-rt-dev >/dev/null
fi
cmake --preset libfuzzer >/dev/null
cmake --build "$build" -j "$(nproc)" --target "${targets[@]/#/fuzz_}"
for name in "${targets[@]}"; do
  mkdir -p "$build/found/$name"
  echo "fuzz_$name: $seconds seconds"
  "$build/tests/fuzz_$name" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=256 -verbosity=0 \
    -print_final_stats=1 -artifact_prefix="$build/finding-$name-" "$build/found/$name" "tests/fuzz/corpus/$name"
done
