#!/usr/bin/env bash
# What a second host's memory and cores give to decode, on one machine: two network namespaces with a core each. The first has a
# coordinator and a CPU worker, the second an expert host. Runs with and without it take turns, so that whatever else the machine
# does weighs on both. Needs root for the namespaces, and two cores.
#
#   tests/bench/expert_hosts.sh PROGRAMS MODEL [TURNS] [TOKENS]
#   tests/bench/expert_hosts.sh build/release/bin bench.gguf 5 64
set -euo pipefail
programs=$(realpath "${1:?the folder of the programs}") model=$(realpath "${2:?a model file}") turns=${3:-5} tokens=${4:-64}
. "$(dirname "$0")/two_hosts.sh"

in_a "$programs/ferry" cluster-init --cluster-certs "$work/certs" >/dev/null
serve() {  # NAME PORT FLAGS...
  local name=$1 port=$2; shift 2
  in_a "$programs/ferry" serve -m "$model" --backend cpu --threads 1 -c 2048 --http-port 0 --port "$port" \
    --keep-rates "$@" >"$work/$name.log" 2>&1 &
  wait_for "$work/$name.log" "serving on"
}
serve one 8090 --divide-experts off
serve two 8190 --divide-experts auto --cluster-listen 192.0.2.1 --cluster-certs "$work/certs"
token=$(in_a "$programs/ferry" cluster-token --cluster-certs "$work/certs")
in_b "$programs/ferry" join 192.0.2.1 --token "$token" --cluster-certs "$work/certs-b" --experts -m "$model" --threads 1 >"$work/experts.log" 2>&1 &
wait_for "$work/two.log" "takes part:"
grep -h "takes part:" "$work/two.log"

rate() { in_a "$programs/ferry" bench --server "127.0.0.1:$1" -p 32 -n "$tokens" -r 1 --json | tail -1 |
  python3 -c 'import json,sys; print("%.3f" % json.loads(sys.stdin.readline())["s_tg"])'; }
rate 8090 >/dev/null; rate 8190 >/dev/null
for turn in $(seq "$turns"); do
  one=$(rate 8090) two=$(rate 8190)
  echo "$one $two" >>"$work/rates"
  awk -v turn="$turn" -v one="$one" -v two="$two" 'BEGIN { printf "turn %d: one host %.2f t/s, two %.2f t/s, ratio %.2f\n", turn, one, two, two / one }'
done
awk '{ print $2 / $1 }' "$work/rates" | sort -n | awk '{ r[NR] = $1 } END { printf "median of the ratios: %.2f\n", r[int((NR + 1) / 2)] }'
in_a "$programs/ferry" status --server 127.0.0.1:8190 | grep -A2 '^experts 0' || true
