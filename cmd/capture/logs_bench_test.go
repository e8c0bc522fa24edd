package main

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"reprise/internal/cli"
)

// BenchmarkLogs imports an nginx log of JSON lines into a finished trace:
// REPRISE_BENCH_LINES of them (200,000). Divide lines/s by the cores that are in
// use for the figure of one core, or set GOMAXPROCS=1.
func BenchmarkLogs(b *testing.B) {
	n := 200_000
	if s := os.Getenv("REPRISE_BENCH_LINES"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	dir := b.TempDir()
	name := filepath.Join(dir, "access.log")
	size := writeNginxLog(b, name, n)
	b.SetBytes(size)
	for b.Loop() {
		out := filepath.Join(dir, "trace.parquet")
		if code := cli.Main(app(), []string{"capture", "logs", name, "-o", out, "--force"}, io.Discard, io.Discard); code != 0 {
			b.Fatalf("exit status %d", code)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
	if peak := peakMemory(); peak > 0 {
		b.ReportMetric(peak, "MB-peak")
	}
}

// peakMemory is the most memory that the process has had, in megabytes, or 0
// where the system does not say.
func peakMemory() float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	kb, _, _ := bytes.Cut(bytes.TrimSpace(rest), []byte(" "))
	v, _ := strconv.ParseFloat(string(kb), 64)
	return v / 1000
}

// writeNginxLog writes a log of n requests, 200 a second, in the order of their
// ends, with the fields of a real log of nginx 1.22.
func writeNginxLog(b *testing.B, name string, n int) (size int64) {
	rng := rand.New(rand.NewPCG(1, 2))
	type line struct {
		end float64
		i   int
		d   float64
	}
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	// Those under way, the one that ends last first: the log is in the order of
	// ends, and making it holds no more than a minute of it.
	var open []line
	write := func(l line) {
		done := "OK"
		if l.i%20 == 0 {
			done = ""
		}
		k, _ := fmt.Fprintf(w, `{"msec":"%.3f","time_iso8601":"2026-11-23T09:27:02+00:00","remote_addr":"10.0.%d.%d","connection":"%d","connection_requests":"%d",`+
			`"request_id":"%016x%016x","method":"POST","uri":"/v1/chat/completions","status":"200","request_length":"%d","content_length":"395",`+
			`"body_bytes_sent":"%d","bytes_sent":"2920","request_time":"%.3f","upstream_addr":"127.0.0.1:18000","upstream_status":"200",`+
			`"upstream_connect_time":"0.004","upstream_header_time":"%.3f","upstream_response_time":"%.3f","upstream_response_length":"2757","request_completion":"%s"}`+"\n",
			l.end, l.i%8, l.i%250, l.i, l.i%7, rng.Uint64(), rng.Uint64(), 300+l.i%9000, 300+l.i%90000, l.d, l.d*.1, l.d, done)
		size += int64(k)
	}
	at := 1795426022.0
	for i := range n {
		at += rng.ExpFloat64() / 200
		for len(open) > 0 && open[len(open)-1].end <= at {
			write(open[len(open)-1])
			open = open[:len(open)-1]
		}
		d := min(60, rng.ExpFloat64()*4)
		l := line{at + d, i, d}
		k, _ := slices.BinarySearchFunc(open, l, func(a, b line) int { return cmp.Compare(b.end, a.end) })
		open = slices.Insert(open, k, l)
	}
	for _, l := range slices.Backward(open) {
		write(l)
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	return size
}
