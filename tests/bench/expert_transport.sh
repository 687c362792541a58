#!/usr/bin/env bash
# What a worker of another host gets of the coordinator's experts by data connections and by gRPC, both with mutual TLS: whole records a
# second, prefill and decode, beside what a plain socket carries between the same two hosts. The hosts are two network namespaces with
# a core each; the coordinator is on the first, the worker on the second. Needs root for the namespaces, and two cores.
#
#   tests/bench/expert_transport.sh PROGRAMS MODEL [MBIT] [TURNS] [TOKENS]
#   tests/bench/expert_transport.sh build/release/bin models/demo-moe.gguf 2500 5
#
# MBIT: the cable's rate; 0, the default: as fast as it goes. TOKENS: of a prompt, which is one step; 256 by default. $SLOTS: the
# worker's memory for experts, 256MiB by default. COLD=1: prompts begin with empty slots.
set -euo pipefail
programs=$(realpath "${1:?the folder of the programs}") model=$(realpath "${2:?a model file}") mbit=${3:-0} turns=${4:-3} tokens=${5:-256}
. "$(dirname "$0")/two_hosts.sh"
narrow "$mbit"

# Bytes a second from the first host to the second, in pieces of a MiB, for two seconds.
plain_socket() {
  in_b timeout 30 python3 -c '
import socket, time
listener = socket.create_server(("192.0.2.2", 9000))
print("listening", flush=True)
end, _ = listener.accept()
buffer, got, began = bytearray(1 << 20), 0, time.monotonic()
while (n := end.recv_into(buffer)) > 0:
    got += n
print(got / (time.monotonic() - began))' >"$work/plain" &
  local receiver=$!
  wait_for "$work/plain" listening
  in_a timeout 30 python3 -c '
import socket, time
end = socket.create_connection(("192.0.2.2", 9000))
piece, until = bytes(1 << 20), time.monotonic() + 2
while time.monotonic() < until:
    end.sendall(piece)'
  wait "$receiver"
  tail -1 "$work/plain"
}

in_a "$programs/ferry" cluster-init --cluster-certs "$work/certs" >/dev/null
measure() {  # TRANSPORT: prints records a second in bytes, prefill and decode in t/s
  rm -f "$work"/*.log
  in_a "$programs/ferry" serve -m "$model" --coordinator-only --workers 1 --http-port 0 --port 0 --threads 1 -c 4096 -b 2048 --insecure \
    --listen 192.0.2.1 --port 8090 --cluster-listen 192.0.2.1 --cluster-certs "$work/certs" >"$work/serve.log" 2>&1 &
  wait_for "$work/serve.log" "coordinator at"
  [ -d "$work/worker" ] || in_b "$programs/ferry" join 192.0.2.1 --cluster-certs "$work/worker" \
    --token "$(in_a "$programs/ferry" cluster-token --cluster-certs "$work/certs")" >/dev/null
  in_b "$programs/ferry-worker" --backend cpu --threads 1 --coordinator 192.0.2.1 --cluster-certs "$work/worker" \
    --listen 192.0.2.2 --vram-experts "${SLOTS:-256MiB}" --expert-transport "$1" >"$work/worker.log" 2>&1 &
  wait_for "$work/serve.log" "serving on"
  in_a "$programs/ferry" bench --server 192.0.2.1:8090 -p "$tokens" -n 32 -r 1 ${COLD:+--cold} --json >"$work/bench.json"
  in_a "$programs/ferry" status --server 192.0.2.1:8090 --json >"$work/status.json"
  python3 - "$work/bench.json" "$work/status.json" "$1" <<'PY'
import json, sys
bench = json.loads(open(sys.argv[1]).read().strip().splitlines()[-1])
worker = json.load(open(sys.argv[2]))["server"]["workers"][0]
assert worker["expert_transport"] == sys.argv[3], worker["expert_transport"]
print(worker["link_bytes_per_second"], bench["s_pp"], bench["s_tg"])
PY
  end_programs
}
for turn in $(seq "$turns"); do
  plain=$(plain_socket) tcp=$(measure tcp) grpc=$(measure grpc)
  echo "$plain $tcp $grpc" | tee -a "$work/turns" |
    awk -v turn="$turn" '{ printf "turn %d: plain socket %.2f GB/s; tcp %.2f GB/s, %.1f and %.1f t/s; grpc %.2f GB/s, %.1f and %.1f t/s\n",
                           turn, $1 / 1e9, $2 / 1e9, $3, $4, $5 / 1e9, $6, $7 }'
done
python3 - "$work/turns" <<'PY'
import statistics, sys
turns = [list(map(float, line.split())) for line in open(sys.argv[1])]
median = lambda values: statistics.median(values)
print("medians: records by tcp %.0f %% of a plain socket, by grpc %.0f %%; tcp against grpc: records %.2f, prefill %.2f, decode %.2f" % (
    100 * median(t[1] / t[0] for t in turns), 100 * median(t[4] / t[0] for t in turns), median(t[1] / t[4] for t in turns),
    median(t[2] / t[5] for t in turns), median(t[3] / t[6] for t in turns)))
PY
