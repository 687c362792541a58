#!/usr/bin/env bash
# From a bare Debian 12 to passed tests: installs what is missing, builds, runs every test. Tests that need a GPU are skipped
# without one and say so.
#
#   tests/run.sh             everything: release tests, sanitizer tests, a minute of each fuzzer
#   tests/run.sh quick       the release tests alone
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/packages.sh

what=${1:-all}
case "$what" in all|quick) ;; *) echo "usage: tests/run.sh [all|quick]" >&2; exit 2 ;; esac
fuzz_seconds=${FERRY_FUZZ_SECONDS:-60}
# Under the address sanitizer: what only computes, for minutes, with code that other tests run too.
asan_too_slow='Golden.*'
# Real processes, all of them built with it: a request over each transport, and a worker that is killed.
asan_cluster='SameEverywhere.OverGrpcWithSlots:SameEverywhere.AmongEightOthers:Faults.AKilledWorker*:Faults.ACancelled*:Faults.BadRequests*'
# Under the thread sanitizer: what has threads.
tsan_coordinator='GenerationLoop*:ClusterController*:Membership*:ExpertExchange*:Pipeline*:FerryService*:Server*'
tsan_worker='*Link*:StepRunner*:ActivationQueue*:ActivationRing*:*TwoWorkers*:Loopback*:CopyAhead*:CutHostShare*:WorkerService*:Agent*:Heartbeat*:ExpertCache*'

ferry_install "${ferry_build_packages[@]}" "${ferry_test_packages[@]}"

failed=()

ferry_say "release: build"
cmake --preset release -DFERRY_TESTS=ON >/dev/null
cmake --build --preset release
ferry_say "release: tests"
ctest --test-dir build/release --output-on-failure || failed+=("release tests")

# Programs under a sanitizer cost minutes to build on two cores, so each builds only what it is run on. gRPC, Protobuf and
# Abseil come uninstrumented from Debian; what the thread sanitizer misunderstands of them is in tests/tsan.supp.
if [ "$what" = all ]; then
  export ASAN_OPTIONS=detect_container_overflow=0:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
  export TSAN_OPTIONS=halt_on_error=1:suppressions=$PWD/tests/tsan.supp

  ferry_say "address and undefined-behaviour sanitizers"
  cmake --preset asan >/dev/null
  cmake --build --preset asan --target common_tests kernels_tests coordinator_tests worker_tests cluster_tests
  for tests in common_tests kernels_tests coordinator_tests worker_tests; do
    "build/asan/bin/$tests" --gtest_brief=1 --gtest_filter="-$asan_too_slow" || failed+=("asan $tests")
  done
  # What coordinator and workers report goes into files: their exit codes are not the test's.
  reports=$(mktemp -d)
  ASAN_OPTIONS=$ASAN_OPTIONS:log_path=$reports/report UBSAN_OPTIONS=$UBSAN_OPTIONS:log_path=$reports/report \
    build/asan/bin/cluster_tests --gtest_brief=1 --gtest_filter="$asan_cluster" || failed+=("asan cluster_tests")
  if [ -n "$(ls -A "$reports")" ]; then
    cat "$reports"/* >&2
    failed+=("asan ferry's processes")
  fi
  rm -rf "$reports"

  ferry_say "thread sanitizer"
  cmake --preset tsan >/dev/null
  cmake --build --preset tsan --target common_tests kernels_tests coordinator_tests worker_tests
  build/tsan/bin/common_tests --gtest_brief=1 || failed+=("tsan common_tests")
  build/tsan/bin/kernels_tests --gtest_brief=1 --gtest_filter='*Thread*:*Concurrent*:*Async*' || failed+=("tsan kernels_tests")
  build/tsan/bin/coordinator_tests --gtest_brief=1 --gtest_filter="$tsan_coordinator" || failed+=("tsan coordinator_tests")
  build/tsan/bin/worker_tests --gtest_brief=1 --gtest_filter="$tsan_worker" || failed+=("tsan worker_tests")

  ferry_say "fuzzing: $fuzz_seconds s each, from the kept corpus"
  cmake --preset fuzz >/dev/null
  cmake --build --preset fuzz --target ferry_fuzzers
  for fuzzer in build/fuzz/bin/*_fuzz; do
    name=$(basename "$fuzzer" _fuzz)
    new=$(mktemp -d)
    "$fuzzer" -max_total_time="$fuzz_seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=0 -verbosity=0 \
      "$new" "tests/fuzz/corpus/$name" || failed+=("fuzz $name")
    rm -rf "$new"
  done
fi

if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s\n' "${failed[@]}" >&2
  exit 1
fi
ferry_say "everything passed"
