#!/usr/bin/env bash
# Unit tests under address and undefined-behaviour sanitizers; the same build reports line coverage of the rooms.
set -euo pipefail
cd "$(dirname "$0")/.."
minimum=${MINIMUM_COVERAGE:-85}

cmake --preset asan -DFLASHSHARD_COVERAGE=ON -DFLASHSHARD_BENCHMARKS=OFF -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O0 -g1" >/dev/null
cmake --build build-asan -j "$(nproc)" --target tests/all
find build-asan -name '*.gcda' -delete
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
# Running out of memory is tested: let allocations fail instead of ending the process.
export ASAN_OPTIONS=allocator_may_return_null=1
# Open MPI keeps memory to the end of the process; leaks are looked for in everything that runs without it.
ctest --test-dir build-asan --output-on-failure -j "$(nproc)" -LE 'mpirun|endtoend'
tests/coverage.py build-asan --fail-under "$minimum"
