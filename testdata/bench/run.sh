#!/usr/bin/env bash
# The figures of docs/measurements.md, side by side in one run:
#
#   bash testdata/bench/run.sh [SECTION...]      all but peers, proxy and soak: about ten minutes
#
# Sections: machine format timers rate fidelity burst telemetry events streams memory azure logs packets peers proxy soak.
# `peers` installs other load generators into REPRISE_CACHE (~/.cache/reprise) and
# plays the same traces with them. ROUNDS (2) and SECONDS_EACH (10) shorten or
# lengthen. A quiet machine is wanted: the load is printed so that a busy one shows.
set -euo pipefail
cd "$(dirname "$0")/../.."
shared=${REPRISE_SHARED:-../shared}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
all="machine format timers rate fidelity burst telemetry events streams memory azure logs packets"
[ $# -gt 0 ] || set -- $all

title() { printf '\n## %s: %s\nload %s\n\n' "$1" "$2" "$(cut -d' ' -f1-3 /proc/loadavg 2>/dev/null || echo unknown)"; }

programs() {
  [ ! -f "$out/serve" ] || return 0
  go build -trimpath -o "$out" ./cmd/replay ./cmd/trace ./internal/wire/mock/serve ./internal/wire/wirebench || exit 1
}

play() { # a section of bench.py
  if [ "$(uname)" != Linux ] || ! command -v python3 >/dev/null; then
    echo "skipped: this takes Linux and python3"
    return 0
  fi
  programs
  python3 testdata/bench/bench.py "$out" "$1"
}

machine() {
  title machine "what this ran on"
  echo "$(nproc) cores, $(go version | cut -d' ' -f3-), $(uname -sr)"
  sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -1
}

format() {
  title format "trace files: CPU seconds a million rows, peak memory"
  go test -run '^$' -bench . -benchtime 1x -timeout 20m ./traceformat
}

timers() {
  title timers "how late a sleep ends"
  go test -run '^$' -bench Overshoot ./internal/clock
}

rate() {
  title rate "closed loop, 16 events in one write, mock and client on a core each"
  command -v wrk >/dev/null || echo "without wrk, which is not installed"
  programs
  "$out/wirebench" -rounds 3
}

events() {
  programs
  for n in 8 1; do
    title events "64 streams of 1,000 events, $n in a write; events/s are 1,000 times requests/s"
    "$out/wirebench" -rounds "${ROUNDS:-2}" -events 1000 -per-write $n
  done
}

fidelity() { title fidelity "send error and TTFT error in an open loop"; play fidelity; }
burst() { title burst "200 requests in 10 ms"; play burst; }
telemetry() { title telemetry "send error with and without watching the engine"; play telemetry; }
streams() { title streams "memory of a stream in flight and of a finished request"; play streams; }
memory() { title memory "over a trace of 10 million rows"; play memory; }
proxy() { title proxy "the recording proxy beside nginx: delay, requests/s, memory of a stream"; bash testdata/bench/proxy.sh; }
soak() {
  title soak "20,000 open streams, live, for SOAK_FOR (30m) of real time; memory each minute; takes root"
  go build -trimpath -o "$out" ./cmd/capture ./capture/packet/soak
  "$out/soak" -capture "$out/capture" -for "${SOAK_FOR:-30m}"
}

peers() { title peers "other load generators, the same traces"; play peers; }

azure() {
  title azure "a slice of the Azure conversation trace, ten times as fast, on the simulated engine"
  local trace=$shared/traces/azure-llm-2023/AzureLLMInferenceTrace_conv.csv
  if [ ! -f "$trace" ]; then
    echo "skipped: no $trace"
    return 0
  fi
  programs
  "$out/replay" "$trace" --duration 10m --speedup 10 -q -o "$out/run" || echo "exit status $?"
}

logs() {
  title logs "nginx log of JSON lines to a finished trace, one core; lines/s, and memory at two sizes"
  GOMAXPROCS=1 go test -run '^$' -bench Logs -benchtime 3x ./cmd/capture
  GOMAXPROCS=1 REPRISE_BENCH_LINES=1000000 go test -run '^$' -bench Logs -benchtime 3x ./cmd/capture
  go test -c -o "$out/capture.test" ./cmd/capture
  for lines in 200000 2000000; do
    (cd cmd/capture && GOMAXPROCS=1 REPRISE_BENCH_LINES=$lines "$out/capture.test" -test.run '^$' -test.bench Logs -test.benchtime 1x | grep 'MB-peak')
  done
}

packets() {
  title packets "10,000 requests on loopback, recorded by tcpdump and by our ring, beside the kernel's and the client's clock"
  go test -run 'TestTcpdump|TestRing' -count 1 -v ./capture/packet | sed -n '/rows,\|ms:\|clock\|stamp\|later\|^ *---/p'
  title packets "a capture of streamed answers to a finished trace, one core; packets/s, MB/s, and memory"
  GOMAXPROCS=1 go test -run '^$' -bench . -cpu 1 -benchtime 3x ./capture/packet ./capture/packet/frame
  GOMAXPROCS=1 REPRISE_BENCH_PCAP=$out/streams.pcap go test -run '^$' -bench Packets -benchtime 3x ./cmd/capture
  if command -v tshark >/dev/null; then
    echo "tshark on the same file, HTTP requests as fields:"
    (TIMEFORMAT='%R s, %U s of user time'
      time tshark -r "$out/streams.pcap" -d tcp.port==8000,http -Y http.request -T fields -e frame.time_epoch 2>/dev/null | wc -l)
  else
    echo "without tshark, which is not installed"
  fi
}

failed=
for section in "$@"; do
  case " $all peers proxy soak " in
  *" $section "*) "$section" || { echo "$section failed"; failed=1; } ;;
  *) echo "no section $section; there are: $all peers proxy soak" >&2; exit 2 ;;
  esac
done
[ -z "$failed" ]
