#!/usr/bin/env bash
# From a bare Debian 12 to passed tests: installs missing packages, builds, runs every test. Tests that need a GPU are skipped
# without one and say so.
#
#   tests/run.sh             everything: release tests, a short soak, sanitizer tests, half a minute of each fuzzer
#   tests/run.sh quick       the release tests and the soak alone
#   FERRY_TEST_MINUTES=80 tests/run.sh    leaves out, and names, what would not end in time on a slow machine (CI sets it)
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/packages.sh

what=${1:-all}
case "$what" in all|quick) ;; *) echo "usage: tests/run.sh [all|quick]" >&2; exit 2 ;; esac
fuzz_seconds=${FERRY_FUZZ_SECONDS:-30}
# Under the address sanitizer: what only computes, for minutes, with code that other tests run too.
asan_too_slow='Golden.*:*GoldenModels*'
# Real processes, all of them built with it: a request over each transport, and a worker that is killed.
asan_cluster='SameEverywhere.OverGrpcWithSlots:SameEverywhere.AmongEightOthers:Faults.WithoutResume*:Faults.ACancelled*:Faults.BadRequests*'
# Under the thread sanitizer: what has threads.
tsan_coordinator='GenerationLoop*:ClusterController*:Membership*:ExpertExchange*:Pipeline*:FerryService*:Server*'
tsan_worker='*Link*:StepRunner*:ActivationQueue*:ActivationRing*:*TwoWorkers*:Loopback*:ExpertForecast*:HostChunks*:WorkerService*:Agent*:Heartbeat*:ExpertCache*'

ferry_install "${ferry_build_packages[@]}" "${ferry_developer_packages[@]}" "${ferry_test_packages[@]}"

# fits MINUTES WHAT: whether everything is to be run, and a part that takes so long on two quiet cores ends in time here, given how
# long the release build took. If it does not end in time, the run says that it leaves WHAT out.
usual_build_seconds=1500
build_seconds=0
fits() {
  [ "$what" = all ] || return
  local limit=${FERRY_TEST_MINUTES:-0} needed=$(($1 * 60))
  [ "$build_seconds" -le "$usual_build_seconds" ] || needed=$((needed * build_seconds / usual_build_seconds))
  if [ "$limit" -eq 0 ] || [ $((SECONDS + needed)) -le $((limit * 60)) ]; then return; fi
  left_out+=("$2")
  ferry_say "left out: $2, which takes about $((needed / 60 + 1)) minutes here, $((SECONDS / 60)) of $limit being over"
  return 1
}
left_out=()

# part NAME: begins a part of the run and notes how long the one before it took.
parts=()
part() {
  local now=$SECONDS
  [ -z "${part_name:-}" ] || parts+=("$(printf '%3d:%02d %s' $(((now - part_began) / 60)) $(((now - part_began) % 60)) "$part_name")")
  part_name=$1 part_began=$now
  [ -z "$1" ] || ferry_say "$1"
}

# check NAME COMMAND…: runs the command. If it fails, its last lines are shown again at the end of the log, where a reader looks first.
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=$logs/failed
check() {
  local name=$1
  shift
  "$@" 2>&1 | tee "$logs/$name" || echo "$name" >>"$failed"
}

# beside NAME COMMAND…: check in the background, one for each core at a time; its output is shown in one piece when it ends.
beside() {
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
  local name=$1
  shift
  {
    "$@" >"$logs/$name" 2>&1 || echo "$name" >>"$failed"
    ferry_say "$name"
    cat "$logs/$name"
  } &
}

# Some tests wait for other processes, and a machine that runs many at once may starve one. So a test that has failed runs once more,
# alone. One that passes then does not fail the run, but is named at its end: somebody has to mend it.
passed_alone=$logs/passed_alone

# ctest_twice ARGUMENT…: ctest in build/release, by that rule.
ctest_twice() {
  local names=build/release/Testing/Temporary/LastTestsFailed.log
  rm -f "$names"
  ctest --test-dir build/release --output-on-failure "$@" && return
  cp "$names" "$logs/ctest_failed" || return
  ferry_say "once more, alone: $(cut -d: -f2- "$logs/ctest_failed" | tr '\n' ' ')"
  ctest --test-dir build/release --output-on-failure --rerun-failed || return
  cut -d: -f2- "$logs/ctest_failed" >>"$passed_alone"
}

# gtest_twice PROGRAM ARGUMENT…: a program of GoogleTest, by that rule. What a sanitizer reports is no failure of a test and counts.
gtest_twice() {
  local log names
  log=$(mktemp -p "$logs")
  "$@" 2>&1 | tee "$log" && return
  names=$(sed -n 's/^\[  FAILED  \] \([^ ,]*\)\(, where .*\)\? ([0-9]* ms)$/\1/p' "$log" | sort -u)
  if [ -z "$names" ] || grep -aqE 'WARNING: ThreadSanitizer|ERROR: (Address|Leak)Sanitizer|runtime error:' "$log"; then return 1; fi
  ferry_say "once more, alone: $names"
  "$1" --gtest_brief=1 --gtest_filter="$(tr '\n' ':' <<<"$names")" || return
  sed "s|^|$(basename "$(dirname "$(dirname "$1")")") $(basename "$1") |" <<<"$names" >>"$passed_alone"
}

part "release: build"
build_began=$SECONDS
cmake --preset release -DFERRY_TESTS=ON >/dev/null
cmake --build --preset release
build_seconds=$((SECONDS - build_began))
part "release: tests"
check "release tests" ctest_twice -L cpu -j "$(nproc)"
part "release: tests with processes"
check "release tests with processes" ctest_twice -LE cpu -j 2

part "soak"
check "soak" tests/soak/soak.py --minutes 0.7 --every 8 --log "$logs/soak.log"

# The official clients of OpenAI and Anthropic, where pip finds them.
clients=build/clients
part "official clients"
if [ -x "$clients/bin/python" ] || { python3 -m venv "$clients" && timeout 120 "$clients/bin/pip" install -q openai anthropic; }; then
  check "official clients" "$clients/bin/python" tests/gateway/official_clients.py build/release/bin
else
  rm -rf "$clients"
  ferry_say "skipped: pip or the packages openai and anthropic cannot be had here"
fi
check "many streams" python3 tests/gateway/many_streams.py build/release/bin
# Another gateway before Ferry's gRPC.
if [ -x "$clients/bin/smg" ] || timeout 120 "$clients/bin/pip" install -q smg; then
  check "SMG in front" "$clients/bin/python" tests/gateway/smg_in_front.py build/release/bin models/demo-moe.gguf
else
  ferry_say "skipped: the package smg cannot be had here"
fi

# Outputs in the form of schemas, judged by another program.
part "schemas"
if [ -x "$clients/bin/python" ] && timeout 120 "$clients/bin/pip" install -q jsonschema; then
  check "schemas" "$clients/bin/python" tests/gateway/schemas_judged.py build/release/bin models/demo-moe.gguf 60
else
  ferry_say "skipped: the package jsonschema cannot be had here"
fi

# Accuracy beside llama.cpp, on the reference models, where they and the packages are at hand.
llama=build/llama golden=../shared/golden
part "beside llama.cpp"
if [ ! -d "$golden" ]; then
  ferry_say "skipped: the reference models in $golden are not here"
elif [ -d "$llama" ] || { python3 -m venv "$llama" &&
  timeout 120 "$llama/bin/pip" install -q numpy xllamacpp==2026.10.11549 llama-cpp-py-sync==0.11548; }; then
  check "beside llama.cpp" "$llama/bin/python" tests/bench/beside_llama_cpp.py accuracy build/release/bin "$golden"
else
  rm -rf "$llama"
  ferry_say "skipped: pip or the packages xllamacpp and llama-cpp-py-sync cannot be had here"
fi

# Kubernetes' schemas, where pip finds them.
schemas=build/schemas
part "manifests"
if [ -x "$schemas/bin/python" ] || { python3 -m venv "$schemas" && timeout 120 "$schemas/bin/pip" install -q kubernetes-validate pyyaml; }; then
  check "manifests" "$schemas/bin/python" tests/deploy/check.py
else
  rm -rf "$schemas"
  ferry_say "skipped: pip or the packages kubernetes-validate and pyyaml cannot be had here"
fi

# Programs under a sanitizer cost minutes to build on two cores, so each builds only what it is run on. gRPC, Protobuf and
# Abseil come uninstrumented from Debian; what the thread sanitizer misunderstands of them is in tests/tsan.supp.
export ASAN_OPTIONS=detect_container_overflow=0:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:suppressions=$PWD/tests/tsan.supp

if fits 22 "the address and undefined-behaviour sanitizers"; then
  part "address and undefined-behaviour sanitizers: build"
  cmake --preset asan >/dev/null
  cmake --build --preset asan --target common_tests kernels_tests coordinator_tests constraint_tests worker_tests gateway_tests \
    ferry-coordinator ferry-worker
  part "address and undefined-behaviour sanitizers: tests"
  for tests in common_tests kernels_tests coordinator_tests constraint_tests worker_tests gateway_tests; do
    beside "asan $tests" gtest_twice "build/asan/bin/$tests" --gtest_brief=1 --gtest_filter="-$asan_too_slow"
  done
  wait
  # The release build's tests start the sanitizer's programs, which lie beside them. What these report goes into files: their exit codes are not the
  # test's.
  cp build/release/bin/cluster_tests build/asan/bin/
  reports=$logs/reports
  mkdir "$reports"
  (
    export ASAN_OPTIONS="$ASAN_OPTIONS:log_path=$reports/report" UBSAN_OPTIONS="$UBSAN_OPTIONS:log_path=$reports/report"
    check "asan cluster_tests" gtest_twice build/asan/bin/cluster_tests --gtest_brief=1 --gtest_filter="$asan_cluster"
  )
  no_reports() { ! cat "$reports"/* 2>/dev/null; }
  check "asan ferry's processes" no_reports
fi

if fits 11 "the thread sanitizer"; then
  part "thread sanitizer: build"
  cmake --preset tsan >/dev/null
  cmake --build --preset tsan --target common_tests coordinator_tests worker_tests gateway_tests
  part "thread sanitizer: tests"
  beside "tsan common_tests" gtest_twice build/tsan/bin/common_tests --gtest_brief=1
  beside "tsan coordinator_tests" gtest_twice build/tsan/bin/coordinator_tests --gtest_brief=1 --gtest_filter="$tsan_coordinator"
  beside "tsan worker_tests" gtest_twice build/tsan/bin/worker_tests --gtest_brief=1 --gtest_filter="$tsan_worker"
  beside "tsan gateway_tests" gtest_twice build/tsan/bin/gateway_tests --gtest_brief=1 --gtest_filter='HttpServer*'
  wait
fi

if fits 9 "the fuzzers"; then
  part "fuzzers: build"
  cmake --preset fuzz >/dev/null
  cmake --build --preset fuzz --target ferry_fuzzers
  part "fuzzers: $fuzz_seconds s each, from the kept corpus"
  fuzz() {
    mkdir "$logs/new_$1"
    "build/fuzz/bin/$1_fuzz" -max_total_time="$fuzz_seconds" -rss_limit_mb=2048 -timeout=20 -print_final_stats=0 -verbosity=0 \
      "$logs/new_$1" "tests/fuzz/corpus/$1" 2>&1 | sed '/ommended dictionary/d; /# Uses:/d'
  }
  for fuzzer in build/fuzz/bin/*_fuzz; do
    name=$(basename "$fuzzer" _fuzz)
    beside "fuzz $name" fuzz "$name"
  done
  wait
fi

if fits 6 "aarch64"; then
  part "aarch64"
  if ferry_install "${ferry_aarch64_packages[@]}" && deploy/aarch64-sysroot.sh; then
    check "aarch64" tests/aarch64.sh
  else
    ferry_say "skipped: Debian's packages for aarch64 cannot be had here"
  fi
fi

part ""
printf '%s\n' "minutes of each part:" "${parts[@]}" >&2

if [ -s "$failed" ]; then
  while read -r name; do
    printf '\nFAILED: %s\n' "$name" >&2
    grep -aE -A 6 ': Failure$|\*\*\*Failed|\*\*\*Timeout|\*\*\*Exception|WARNING: ThreadSanitizer|ERROR: (AddressSanitizer|LeakSanitizer|libFuzzer)|runtime error:|^SUMMARY:|^\[  FAILED  \]' \
      "$logs/$name" | tail -40 >&2 || tail -20 "$logs/$name" >&2
  done <"$failed"
  sed 's/^/FAILED: /' "$failed" >&2
  exit 1
fi
if [ -s "$passed_alone" ]; then
  sed 's/^/PASSED ONLY ALONE, which somebody has to mend: /' "$passed_alone" >&2
fi
if [ ${#left_out[@]} -gt 0 ]; then
  printf 'LEFT OUT, since the time was short: %s\n' "${left_out[@]}" >&2
fi
ferry_say "everything that was run passed"
