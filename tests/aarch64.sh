#!/usr/bin/env bash
# Cross-builds for aarch64 and runs tests under qemu-user, on an emulated processor for each instruction set. Nothing can be timed there.
#
#   tests/aarch64.sh         kernels: their bits against portable code's; about three minutes on two cores (tests/run.sh has this)
#   tests/aarch64.sh all     every program, all tests of kernels, and those of common that need no process of their own; an hour
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/packages.sh

what=${1:-quick}
case "$what" in quick|all) ;; *) echo "usage: tests/aarch64.sh [quick|all]" >&2; exit 2 ;; esac
ferry_install "${ferry_build_packages[@]}" "${ferry_aarch64_packages[@]}"
deploy/aarch64-sysroot.sh

cmake --preset aarch64 -DFERRY_TESTS=ON -DFERRY_PRECOMPILE=ON >/dev/null
emulate() { qemu-aarch64 -L build/aarch64-sysroot -cpu "$@"; }
kernels=build/aarch64/bin/kernels_tests

if [ "$what" = quick ]; then
  cmake --build --preset aarch64 --target kernels_tests
  # NEON alone, with DotProd, with I8MM.
  for processor in cortex-a72 neoverse-n1 max; do
    ferry_say "$processor"
    emulate "$processor" "$kernels" --gtest_brief=1 --gtest_filter='*Aarch64Bits*:CpuOps.*:*CpuPeaks*'
  done
else
  cmake --build --preset aarch64
  ferry_say "kernels_tests"
  emulate max "$kernels" --gtest_brief=1
  ferry_say "common_tests"
  emulate max build/aarch64/bin/common_tests --gtest_brief=1
fi
