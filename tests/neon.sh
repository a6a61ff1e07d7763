#!/usr/bin/env bash
# The codecs, rules and norms on NEON, under emulation: the tests of tests/kernels/numerics and of the C library built for arm64
# and run by qemu. They compare NEON with the scalar loops and with the golden files, bit for bit. For x86-64 machines with Debian;
# part of the nightly, not of CI (about five minutes of one core). Highway's arm64 library is unpacked beside the build, not installed.
#   tests/neon.sh            all of them
#   tests/neon.sh FILTER     those that GoogleTest's filter lets through
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD_DIR:-build-neon}
mkdir -p "$build"/{lists,cache/archives}/partial "$build"/objects

if ! command -v qemu-aarch64-static >/dev/null || ! command -v aarch64-linux-gnu-g++-12 >/dev/null; then
  apt-get install -y --no-install-recommends qemu-user-static g++-12-aarch64-linux-gnu googletest >/dev/null
fi
libraries="$build"/sysroot/usr/lib/aarch64-linux-gnu
if [ ! -e "$libraries"/libhwy.so.1 ]; then
  options=(-q -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o Dir::State::Lists="$PWD/$build/lists"
           -o Dir::Cache="$PWD/$build/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update >/dev/null
  (cd "$build" && apt-get "${options[@]}" download libhwy1:arm64 >/dev/null && dpkg -x libhwy1_*_arm64.deb sysroot)
fi

# As CMake compiles them: the sources' list and flags are kernels/numerics/sources.cmake's.
sources=$(sed -n 's/^  \(\(numerics\|cpu\)\/[a-z0-9_]*\.cc\)[)]*$/kernels\/\1/p' kernels/numerics/sources.cmake)
tests=$(ls tests/kernels/numerics/*_test.cc tests/kernels/capi/*_test.cc kernels/capi/*.cc)
gtest=/usr/src/googletest
compile() {
  local object
  object="$build/objects/$(echo "$1" | tr / _).o"
  [ "$object" -nt "$1" ] && [ -z "$(find kernels tests/kernels/{numerics,capi} -newer "$object" -name '*.[hi]*' -print -quit)" ] && return
  aarch64-linux-gnu-g++-12 -std=c++20 -O2 -ffp-contract=off -fno-math-errno -I. -I"$gtest/googletest" \
    -I"$gtest/googlemock" -I"$gtest/googletest/include" -I"$gtest/googlemock/include" \
    -DFLASHSHARD_TEST_DATA="\"$PWD/tests\"" -c "$1" -o "$object"
}
export -f compile
export build gtest
printf '%s\n' $sources $tests "$gtest"/googletest/src/{gtest-all,gtest_main}.cc "$gtest"/googlemock/src/gmock-all.cc |
  xargs -P "$(nproc)" -I{} bash -euc 'compile {}'
aarch64-linux-gnu-g++-12 -o "$build"/numerics_test "$build"/objects/*.o "$libraries"/libhwy.so.1
exec qemu-aarch64-static -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH="$libraries" "$build"/numerics_test --gtest_brief=1 --gtest_filter="${1:-*}"
