#!/usr/bin/env bash
# Longer campaigns than CI has time for; CI runs a sample of each. About two hours on two cores.
#   - 50 runs killed at random moments and resumed to the bits of the undisturbed run (CI: 5)
#   - codecs, rules and norms on NEON, under emulation (tests/neon.sh)
#   - the invariants of V1's error correction over all mantissas (CI: a sample)
#   - two million mutations of every fuzz corpus from a new seed (CI: 3000 from a fixed one), and ten minutes of libFuzzer over
#     each (tests/libfuzzer.sh)
#   - unit tests under the thread sanitizer; clang's static analyzer
#   - CUDA kernels for sm_80 and sm_100 (CI: sm_90)
#   - the quick start from nothing, and format quality over three seeds (CI: neither)
set -euo pipefail
cd "$(dirname "$0")/.."
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1

tests/run.sh
tests/lint.sh --analyzer
tests/neon.sh
FLASHSHARD_ALL_MANTISSAS=1 build/tests/numerics_test --gtest_filter='*ErrorCorrection*'
for seed in $(seq 1 10); do
  FLASHSHARD_BINARY=build/flashshard FLASHSHARD_KILLS=5 FLASHSHARD_TEST_SEED=$seed \
    python3 tests/launch/end_to_end_test.py Runs.test_killed_at_random_moments_it_goes_on_to_the_same_hash
done

seed=$(date +%Y%m%d)
for name in $(ls tests/fuzz/corpus); do
  "build/tests/fuzz_$name" --mutations 2000000 --seed "$seed" "tests/fuzz/corpus/$name"
done

tests/libfuzzer.sh

# Open MPI is not instrumented: only tests on in-process ranks mean anything here.
cmake --preset tsan -DFLASHSHARD_BENCHMARKS=OFF >/dev/null
cmake --build build-tsan -j "$(nproc)"
ctest --test-dir build-tsan --output-on-failure -j "$(nproc)" -LE 'mpirun|endtoend'

if command -v nvcc >/dev/null; then
  for architecture in 80 100; do
    cmake --preset cuda -B "build-cuda-$architecture" -DCMAKE_CUDA_ARCHITECTURES="$architecture" -DFLASHSHARD_BENCHMARKS=OFF >/dev/null
    cmake --build "build-cuda-$architecture" -j "$(nproc)" --target flashshard_cuda
  done
fi

launch/quickstart.sh --run-dir "runs/nightly-$(date +%Y%m%d-%H%M%S)"
benchmarks/format_quality.py
