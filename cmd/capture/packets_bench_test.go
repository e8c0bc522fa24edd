package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"reprise/capture/packet/pcaptest"
	"reprise/internal/cli"
)

// BenchmarkPackets turns a capture of streamed answers into a finished trace:
// 2,000 connections, each with two answers of 300 events. With
// REPRISE_BENCH_PCAP it keeps the file at that name, for other tools to read.
// GOMAXPROCS=1 gives the figure of one core.
func BenchmarkPackets(b *testing.B) {
	dir := b.TempDir()
	name := os.Getenv("REPRISE_BENCH_PCAP")
	if name == "" {
		name = filepath.Join(dir, "streams.pcap")
	}
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	packets, err := pcaptest.WriteStreams(f, 2000, 2, 300)
	if err != nil {
		b.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(info.Size())
	out := filepath.Join(dir, "trace.parquet")
	began := cpuTime()
	for b.Loop() {
		if code := cli.Main(app(), []string{"capture", "packets", name, "--port", "8000", "-o", out, "--force"}, io.Discard, io.Discard); code != 0 {
			b.Fatalf("exit status %d", code)
		}
	}
	cpu := cpuTime() - began
	n := float64(packets) * float64(b.N)
	b.ReportMetric(n/b.Elapsed().Seconds(), "packets/s")
	if cpu > 0 {
		b.ReportMetric(n/cpu.Seconds(), "packets/cpu-s")
		b.ReportMetric(float64(info.Size())*float64(b.N)/1e6/cpu.Seconds(), "MB/cpu-s")
	}
	if peak := peakMemory(); peak > 0 {
		b.ReportMetric(peak, "MB-peak")
	}
}
