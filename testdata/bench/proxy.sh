#!/usr/bin/env bash
# What `capture proxy` costs, beside nginx (buffering off) and a plain ReverseProxy:
#
#   bash testdata/bench/run.sh proxy
#
# Mock and client share one core, the proxies take turns on another. ROUNDS (10)
# and SECONDS_EACH (2) shorten or lengthen.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "$(uname)" != Linux ] || [ "$(nproc)" -lt 2 ]; then
  echo "skipped: this takes Linux and two cores"
  exit 0
fi
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -trimpath -o "$bin" ./cmd/capture ./internal/wire/mock/serve ./capture/proxy/proxybench
ulimit -n "$(ulimit -Hn)"
bench() { "$bin/proxybench" -bin "$bin" -rounds "${ROUNDS:-10}" -each "${SECONDS_EACH:-2}s" "$@"; }

bench delay
echo
bench rate
echo
echo "one write an answer: what a request costs on its own"
bench -gap 0 -events 16 -per-write 0 -conns 64 rate
echo
bench memory
