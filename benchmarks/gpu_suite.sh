#!/usr/bin/env bash
# All that the optimizer's CUDA kernels have to show on a machine with a GPU, in one command of less than 8 minutes: the bits of the
# CPU, clean memory accesses, and the time of a step beside FlashOptim, PyTorch and a memory copy.
#
#   benchmarks/gpu_suite.sh --package DIR   here: builds for sm_90 into DIR what a machine without network, MPI and our
#                                           libraries needs, and this script with it (12 MiB)
#   DIR/gpu_suite.sh [RESULTS]              there: runs it. Needs a GPU, its driver and python3 with PyTorch and Triton;
#                                           compute-sanitizer where the CUDA toolkit has it
#   benchmarks/gpu_suite.sh [RESULTS]       both on one machine
# RESULTS (default: gpu_results beside this script) gets table.txt, suite.json, parity.txt and memcheck.txt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

fail() { echo "error: $*" >&2; exit 2; }

package() {
  local folder=$1 root
  root=$(cd "$here/.." && pwd)
  [ -f "$root/CMakePresets.json" ] || fail "--package works in FlashShard's repository, not in a package"
  command -v nvcc >/dev/null || fail "no nvcc on PATH: the kernels are compiled with the CUDA toolkit"
  [ ! -e "$folder" ] || [ -z "$(ls -A "$folder")" ] || fail "$folder is not empty"
  local build="$root/build-gpu-suite" static="-static-libstdc++ -static-libgcc"
  # Libraries that are not of the C library lie beside what needs them.
  cmake --preset cuda -S "$root" -B "$build" -DFLASHSHARD_MPI=OFF -DFLASHSHARD_BENCHMARKS=OFF -DCMAKE_CUDA_ARCHITECTURES=90 \
    -DCMAKE_EXE_LINKER_FLAGS="$static" -DCMAKE_SHARED_LINKER_FLAGS="$static" -DCMAKE_BUILD_RPATH='$ORIGIN' >/dev/null
  cmake --build "$build" -j "${JOBS:-$(nproc)}" --target cuda_gpu_test flashshard_codec_cuda
  mkdir -p "$folder/tests/kernels/numerics/golden" "$folder/python"
  cp "$build/tests/cuda_gpu_test" "$here/gpu_suite.sh" "$here/gpu_suite.py" "$root/kernels/capi/example.py" "$folder/"
  cp -L "$build/libflashshard_codec_cuda.so" "$folder/"
  cp -L "$(ldd "$build/tests/cuda_gpu_test" | awk '/libhwy\.so/ { print $3 }')" "$folder/"
  cp "$root"/tests/kernels/numerics/golden/*.bin "$folder/tests/kernels/numerics/golden/"
  git -C "$root" rev-parse HEAD >"$folder/commit.txt" 2>/dev/null || echo "no repository" >"$folder/commit.txt"
  python3 -m pip --quiet download --no-deps --dest "$folder/python" flashoptim==0.1.4 ||
    fail "pip could not fetch flashoptim 0.1.4 (PyPI)"
  (cd "$folder/python" && python3 -m zipfile -e flashoptim-*.whl . && rm flashoptim-*.whl)
  local size
  size=$(du -sm "$folder" | cut -f1)
  [ "$size" -lt 50 ] || fail "the package has $size MiB, the limit is 50"
  echo "$folder: $size MiB. On the machine with the GPU: $folder/gpu_suite.sh"
}

run() {
  local results=$1 passed
  command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU ||
    fail "no NVIDIA GPU is visible here (nvidia-smi); the suite needs one"
  command -v python3 >/dev/null || fail "no python3; the suite needs it with PyTorch and Triton"
  local driver
  driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)
  mkdir -p "$results"
  export FLASHSHARD_TEST_DATA="$here/tests"

  echo "== bits of the CPU, in every rule, format, rounding, length and alignment"
  timeout 90 "$here/cuda_gpu_test" >"$results/parity.txt" 2>&1 || { tail -n 30 "$results/parity.txt" >&2; fail "parity: see $results/parity.txt"; }
  passed=$(tail -n 5 "$results/parity.txt" | grep -o '[0-9]* tests\?\.$' | head -1)
  if grep -q SKIPPED "$results/parity.txt"; then fail "parity tests were skipped: the CUDA runtime found no device (driver $driver)"; fi
  echo "passed: $passed"

  echo "== compute-sanitizer memcheck"
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
  if [ -n "$sanitizer" ]; then
    timeout 150 "$sanitizer" --tool memcheck --error-exitcode 9 "$here/cuda_gpu_test" \
      --gtest_filter='Update.*:Masters.*:Folds.*:*NormParity*:*MasterParity*:*WildStates*/AdamW*:*WildStates*/Lion*' >"$results/memcheck.txt" 2>&1 ||
      { tail -n 30 "$results/memcheck.txt" >&2; fail "memcheck: see $results/memcheck.txt"; }
    grep 'ERROR SUMMARY' "$results/memcheck.txt"
  else
    echo "left out: no compute-sanitizer here (CUDA toolkit)" | tee "$results/memcheck.txt"
  fi

  echo "== time of a step"
  timeout 240 python3 "$here/gpu_suite.py" --library "$here/libflashshard_codec_cuda.so" --flashoptim "$here/python" \
    --driver "$driver" --json "$results/suite.json" 2>&1 | tee "$results/table.txt"
  echo "results: $results (commit $(cat "$here/commit.txt"))"
}

case "${1:-}" in
  --package) [ $# -eq 2 ] || fail "usage: gpu_suite.sh --package DIR"; package "$2" ;;
  -*) sed -n '2,11s/^# \{0,1\}//p' "$0"; [ "$1" = --help ] ;;
  *)
    results=${1:-$here/gpu_results}
    if [ -x "$here/cuda_gpu_test" ]; then
      run "$results"
    else
      command -v nvidia-smi >/dev/null || fail "no NVIDIA GPU is visible here (nvidia-smi); the suite needs one"
      built=$(mktemp -d)
      trap 'rm -rf "$built"' EXIT
      package "$built/package"
      here="$built/package" run "$results"
    fi ;;
esac
