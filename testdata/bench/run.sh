#!/usr/bin/env bash
# The figures of docs/measurements.md, side by side in one run. Quiet machine
# wanted: the load is printed so that a busy one shows.
set -euo pipefail
cd "$(dirname "$0")/../.."
shared=${REPRISE_SHARED:-../shared}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

section() { printf '\n## %s\n' "$*"; }

section "machine"
echo "$(nproc) cores, load $(cut -d' ' -f1-3 /proc/loadavg), $(go version | cut -d' ' -f3-)"

section "trace files: CPU seconds a million rows, peak memory"
go test -run '^$' -bench 'Million|Memory|Chunks' -benchtime 1x -timeout 20m ./traceformat

section "timers: how late a sleep ends"
go test -run '^$' -bench Overshoot ./internal/clock

section "a slice of the Azure conversation trace, ten times as fast, on the simulated engine"
azure=$shared/traces/azure-llm-2023/AzureLLMInferenceTrace_conv.csv
if [ -f "$azure" ]; then
  go build -o "$out/replay" ./cmd/replay
  "$out/replay" "$azure" --duration 10m --speedup 10 -o "$out/run" || echo "exit status $?"
else
  echo "skipped: no $azure"
fi
