#!/usr/bin/env bash
# Installs what is missing, builds, runs every test and ends with ctest's summary.
#   tests/run.sh            all tests
#   tests/run.sh REGEX      those whose name matches
#   BUILD_DIR=... PRESET=asan tests/run.sh ...   another preset of CMakePresets.json
set -euo pipefail
cd "$(dirname "$0")/.."

launch/install_dependencies.sh --tests
preset=${PRESET:-release}
build=${BUILD_DIR:-build$([ "$preset" = release ] || echo "-$preset")}
# The quick start builds in the same folder, without them.
cmake --preset "$preset" -B "$build" -DFLASHSHARD_TESTS=ON -DFLASHSHARD_BENCHMARKS=ON >/dev/null
cmake --build "$build" -j "$(nproc)"

# Open MPI refuses root and more ranks than cores unless told otherwise; tests do both.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
exec ctest --test-dir "$build" --no-tests=error --output-on-failure -j "$(nproc)" ${CTEST_ARGUMENTS:-} ${1:+-R "$1"}
