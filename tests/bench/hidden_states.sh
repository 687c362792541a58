#!/usr/bin/env bash
# What hidden states take between two hosts over a data connection and over gRPC, both with mutual TLS: the times that
# `--transport auto` measures when it chooses, of several starts. The hosts are two network namespaces with a core each; the
# coordinator is on the first. Needs root for the namespaces, and two cores.
#
#   tests/bench/hidden_states.sh PROGRAMS MODEL [STARTS]
#   tests/bench/hidden_states.sh build/release/bin models/demo-moe.gguf 9
set -euo pipefail
programs=$(realpath "${1:?the folder of the programs}") model=$(realpath "${2:?a model file}") starts=${3:-9}
. "$(dirname "$0")/two_hosts.sh"

in_a "$programs/ferry" cluster-init --cluster-certs "$work/certs" >/dev/null
for start in $(seq "$starts"); do
  rm -f "$work"/*.log
  in_a "$programs/ferry" serve -m "$model" --coordinator-only --workers 2 --http-port 0 --port 0 --cluster-listen 192.0.2.1 \
    --cluster-certs "$work/certs" >"$work/serve.log" 2>&1 &
  wait_for "$work/serve.log" "coordinator at"
  for place in 0 1; do
    in=in_a address=192.0.2.1
    [ "$place" = 1 ] && in=in_b address=192.0.2.2
    certs=$work/worker$place
    [ -d "$certs" ] || "$in" "$programs/ferry" join 192.0.2.1 --cluster-certs "$certs" \
      --token "$(in_a "$programs/ferry" cluster-token --cluster-certs "$work/certs")" >/dev/null
    "$in" "$programs/ferry-worker" --backend cpu --threads 1 --coordinator 192.0.2.1 --cluster-certs "$certs" --listen "$address" \
      --worker-id "$place" >"$work/worker$place.log" 2>&1 &
  done
  wait_for "$work/worker0.log" "tcp and gRPC took"
  grep -o "tcp and gRPC took.*" "$work/worker0.log" | tee -a "$work/times"
  end_programs
done
grep -oE "[0-9]+ and [0-9]+ us for [0-9]+ rows" "$work/times" | python3 -c '
import collections, re, statistics, sys
times = collections.defaultdict(list)
for tcp, grpc, rows in re.findall(r"(\d+) and (\d+) us for (\d+) rows", sys.stdin.read()):
    times[int(rows)].append((int(tcp), int(grpc)))
for rows, pairs in times.items():
    tcp, grpc = (statistics.median(side) for side in zip(*pairs))
    ratio = statistics.median(g / t for t, g in pairs)
    print(f"{rows} rows: tcp {tcp:.0f} us, gRPC {grpc:.0f} us, ratio {ratio:.2f}; medians of {len(pairs)}")'
