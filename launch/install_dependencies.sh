#!/usr/bin/env bash
# Installs what FlashShard builds and runs with, from the distribution's own packages (Debian 12, Ubuntu 24.04 or newer).
# Does nothing when all are there. Options: --tests adds what the tests need, --lint what CI's checks need.
set -euo pipefail

packages=(build-essential cmake ninja-build pkg-config git
  libopenmpi-dev openmpi-bin
  libprotobuf-dev protobuf-compiler
  libopenblas-dev libdnnl-dev ocl-icd-opencl-dev libhwy-dev libxxhash-dev libzstd-dev
  libcli11-dev libfmt-dev libspdlog-dev nlohmann-json3-dev
  libsentencepiece-dev
  bible-kjv)
for option in "$@"; do
  case "$option" in
    --tests) packages+=(libgtest-dev libgmock-dev python3) ;;
    --lint) packages+=(clang-format clang-tidy) ;;
    *) echo "install_dependencies.sh: unknown option $option (--tests, --lint)" >&2; exit 2 ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "error: not root and no sudo; install these packages yourself: ${missing[*]}" >&2; exit 2; }
  as_root=(sudo)
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
