#!/usr/bin/env bash
# Installs the built project into a fresh folder and builds and runs another project against it.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build}
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
cmake --install "$build" --prefix "$prefix" >/dev/null
"$prefix/bin/flashshard" --version
cmake -S tests/package -B "$prefix/consumer" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
cmake --build "$prefix/consumer" >/dev/null
"$prefix/consumer/consumer"
"$prefix/consumer/codec_consumer"

# The C library has the kernels alone: no MPI, and nothing to see but fs_*.
codec=$(find "$prefix" -name libflashshard_codec.so)
needs=$(ldd "$codec")
if grep -i mpi <<<"$needs"; then echo "error: $codec needs MPI" >&2; exit 1; fi
names=$(nm -D --defined-only "$codec" | awk '$2 != "A" { print $3 }')  # A: the version's own name
if grep -v '^fs_' <<<"$names"; then echo "error: $codec shows these names, only fs_* are its interface" >&2; exit 1; fi
grep -q '^fs_apply_step' <<<"$names" || { echo "error: $codec has no fs_apply_step" >&2; exit 1; }
