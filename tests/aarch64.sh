#!/usr/bin/env bash
# Cross-builds the kernels and their tests for aarch64 and runs these under qemu-user. Nothing can be timed there. The programs have
# not been built for aarch64 yet.
#
#   tests/aarch64.sh         the kernels' bits against portable code's, on an emulated processor for each instruction set; about
#                            three minutes on two cores (tests/run.sh has this)
#   tests/aarch64.sh all     all tests of kernels on a processor that has every instruction set: half an hour more
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

cmake --build --preset aarch64 --target kernels_tests
# NEON alone, with DotProd, with I8MM.
for processor in cortex-a72 neoverse-n1 max; do
  ferry_say "$processor"
  emulate "$processor" "$kernels" --gtest_brief=1 --gtest_filter='*Aarch64Bits*:CpuOps.*:*CpuPeaks*'
done
if [ "$what" = all ]; then
  ferry_say "all tests"
  emulate max "$kernels" --gtest_brief=1
fi
