#!/usr/bin/env bash
# What `ferry plan --hosts` predicts for workers on the cores of two hosts against what they do, on one machine: two network
# namespaces with a core each. In turns: an expert host on the second measures what the plan's file asks for (both engines, an
# exchange and the rate of rows) and computes its share, then the first host alone is measured, then it with a worker on the second.
# Each start measures its rates anew. At the end the plan is made by the medians of the rates that steps have shown. Needs root for
# the namespaces, and two cores.
#
#   tests/bench/plan_hosts.sh PROGRAMS MODEL [TURNS] [TOKENS] [STEP] [MBIT]
#   tests/bench/plan_hosts.sh build/release/bin bench.gguf 3 1024 256
#
# Prompts have TOKENS tokens, in steps of STEP (-b). MBIT: the cable's rate; 0, the default: as fast as it goes.
set -euo pipefail
programs=$(realpath "${1:?the folder of the programs}") model=$(realpath "${2:?a model file}") turns=${3:-3} tokens=${4:-1024} step=${5:-256} mbit=${6:-0}
. "$(dirname "$0")/two_hosts.sh"
narrow "$mbit"
sizes=(-c 4096 -b "$step" -t 1)

in_a "$programs/ferry" cluster-init --cluster-certs "$work/certs" >/dev/null
serve() {  # FLAGS...
  rm -f "$work/serve.log"
  in_a "$programs/ferry" serve -m "$model" "${sizes[@]}" --http-port 0 --port 8090 --probe "$@" >"$work/serve.log" 2>&1 &
}
join() {  # HOST FOLDER FLAGS...
  local in=$1 folder=$2; shift 2
  "$in" "$programs/ferry" join 192.0.2.1 --cluster-certs "$folder" \
    --token "$(in_a "$programs/ferry" cluster-token --cluster-certs "$work/certs")" "$@"
}
worker() {  # HOST ADDRESS NUMBER
  [ -d "$work/certs-$3" ] || join "$1" "$work/certs-$3" >/dev/null
  "$1" "$programs/ferry-worker" --coordinator 192.0.2.1 --listen "$2" --worker-id "$3" --backend cpu --threads 1 \
    --cluster-certs "$work/certs-$3" >"$work/worker$3.log" 2>&1 &
}
status() { in_a "$programs/ferry" status --server 127.0.0.1:8090 --json >"$work/status-$1.json"; }
rate() {  # LENGTH TOKENS KEY
  in_a "$programs/ferry" bench --server 127.0.0.1:8090 -p "$1" -n "$2" -r 3 --json 2>/dev/null | tail -1 |
    python3 -c 'import json,sys; print("%.3f" % json.loads(sys.stdin.readline())[sys.argv[1]])' "$3"
}
measure() {  # NAME: prefill and decode of the server that runs
  wait_for "$work/serve.log" "serving on"
  echo "$(rate "$tokens" 1 s_pp) $(rate 32 48 s_tg)"
  status "$1"
  end_programs
}

for turn in $(seq "$turns"); do
  serve --backend cpu --cluster-listen 192.0.2.1 --cluster-certs "$work/certs"
  wait_for "$work/serve.log" "serving on"
  join in_b "$work/certs-b" --experts -m "$model" --threads 1 >"$work/experts.log" 2>&1 &
  wait_for "$work/serve.log" "takes part:"
  engines=$(measure "engines-$turn")
  rm -rf "$work/certs-b"
  serve --backend cpu
  one=$(measure "one-$turn")
  serve --coordinator-only --workers 2 --cluster-listen 192.0.2.1 --cluster-certs "$work/certs"
  wait_for "$work/serve.log" "coordinator at"
  worker in_a 192.0.2.1 0
  worker in_b 192.0.2.2 1
  two=$(measure "two-$turn")
  echo "$one $engines $two" | tee -a "$work/turns" | sed "s/^/turn $turn, prefill and decode alone, with engines, with workers: /"
done

python3 - "$work" <<'PY'
import glob, json, statistics, sys
servers = [json.load(open(path))["server"] for path in glob.glob(sys.argv[1] + "/status-*.json")]
def steps(values, rate, slowdown):  # as the last steps have shown it
    return values[rate] / (values.get(slowdown, 0) or 1)
def host(rate, slowdown):
    return statistics.median(steps(server["host_experts"], rate, slowdown) for server in servers)
def other(rate, slowdown):
    return statistics.median(steps(server["expert_hosts"][0], rate, slowdown) for server in servers if server.get("expert_hosts"))
exchange = statistics.median(host["exchange_seconds"] * (host.get("exchange_slowdown", 0) or 1) for server in servers for host in server.get("expert_hosts", []))
number = lambda rate: "%.4g" % rate
cluster = {"network": {"rate": number(other("row_bytes_per_second", "exchange_slowdown_of_large_steps")), "exchange_us": round(1e6 * exchange, 1)}, "hosts": [
    {"name": "a", "address": "192.0.2.1", "memory": "2GiB", "cores": 1, "read": number(host("read_bytes_per_second", "slowdown_of_small_steps")), "flops": round(host("flops_per_second", "slowdown_of_large_steps"))},
    {"name": "b", "address": "192.0.2.2", "memory": "2GiB", "cores": 1, "read": number(other("read_bytes_per_second", "slowdown")), "flops": round(other("flops_per_second", "slowdown_of_large_steps")),
     "cpu_worker": True}]}
json.dump(cluster, open(sys.argv[1] + "/cluster.json", "w"))
PY
cat "$work/cluster.json"; echo
"$programs/ferry" plan -m "$model" "${sizes[@]}" -p "$tokens" --hosts "$work/cluster.json" --json >"$work/plan.json"
python3 - "$work/turns" "$work/plan.json" <<'PY'
import json, statistics, sys
turns = [list(map(float, line.split())) for line in open(sys.argv[1])]
choices = json.load(open(sys.argv[2]))["choices"]
for first, names in ((0, ["a alone"]), (2, ["with engines"]), (4, ["with all workers", "with workers"])):
    choice = next((c for c in choices if c["choice"] in names), None)
    if choice is None:
        print(names[0], "is no choice of the plan")
        continue
    for column, rate in ((first, "prefill"), (first + 1, "decode")):
        measured, planned = statistics.median(t[column] for t in turns), choice[rate + "_tokens_per_second"]
        print("%s, %s: measured %.1f t/s, planned %.1f, %+.0f %%" % (choice["choice"], rate, measured, planned, 100 * (planned / measured - 1)))
PY
