#!/usr/bin/env bash
# From a bare Debian 12 to generated text: installs the missing packages, builds, starts a coordinator and two workers on the
# bundled model, streams a completion, says which experts went where, answers a message over HTTP, and stops everything.
#
#   deploy/quickstart.sh ["a prompt"]
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/packages.sh

prompt=${1:-"Once upon a time there was a"}

ferry_install "${ferry_build_packages[@]}" curl
ferry_cuda

ferry_say "building (the first time takes some minutes)"
cmake --preset release -DFERRY_TESTS=OFF >/dev/null
cmake --build --preset release --target ferry ferry-coordinator ferry-worker ferry-expert-host ferry-gateway

ferry_say "one coordinator, two workers, models/demo-moe.gguf: continuing «$prompt»"
printf '%s' "$prompt"
build/release/bin/ferry generate -m models/demo-moe.gguf --workers 2 --vram-experts 2MiB -n 120 --temp 0.8 --seed 7 --show-experts -p "$prompt"

# The bundled model has a chat template, and 30 million parameters that have read old novels: its answers are no help.
port=${FERRY_HTTP_PORT:-8080}
ferry_say "the same server over HTTP, at http://127.0.0.1:$port/v1"
build/release/bin/ferry serve -m models/demo-moe.gguf --workers 2 --vram-experts 2MiB --port 0 --http-port "$port" --log-level warn &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
until curl -sf "http://127.0.0.1:$port/health" >/dev/null; do
  kill -0 "$server" 2>/dev/null || { echo "error: ferry serve ended; FERRY_HTTP_PORT chooses another port than $port" >&2; exit 1; }
  sleep 0.2
done
request='{"messages": [{"role": "user", "content": "Who goes there?"}], "max_tokens": 40, "seed": 7}'
echo "curl http://127.0.0.1:$port/v1/chat/completions -d '$request'"
curl -sS "http://127.0.0.1:$port/v1/chat/completions" -d "$request"
echo
ferry_say "to go on: build/release/bin/ferry serve -m models/demo-moe.gguf, then http://127.0.0.1:8080/ in a browser"
