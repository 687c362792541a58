#!/usr/bin/env bash
# From a bare Debian 12 to generated text: installs what is missing, builds, starts a coordinator and two workers on the
# bundled model, streams a completion, says which experts went where, and stops everything.
#
#   deploy/quickstart.sh ["a prompt"]
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/packages.sh

prompt=${1:-"Once upon a time there was a"}

ferry_install "${ferry_build_packages[@]}"

ferry_say "building (the first time takes some minutes)"
cmake --preset release -DFERRY_TESTS=OFF >/dev/null
cmake --build --preset release --target ferry ferry-coordinator ferry-worker

ferry_say "one coordinator, two workers, models/demo-moe.gguf: continuing «$prompt»"
exec build/release/bin/ferry generate -m models/demo-moe.gguf --workers 2 -n 120 --temp 0.8 --seed 7 --show-experts -p "$prompt"
