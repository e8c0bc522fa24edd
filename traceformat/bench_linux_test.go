package traceformat

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchRows is how many rows each benchmark moves; REPRISE_BENCH_ROWS=5000000
// gives the figures for peak memory.
func benchRows(b *testing.B) int {
	s := os.Getenv("REPRISE_BENCH_ROWS")
	if s == "" {
		return 200_000
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		b.Fatalf("REPRISE_BENCH_ROWS is %q, want a number of rows", s)
	}
	return n
}

// cost is what the process has used so far.
type cost struct {
	cpu time.Duration
	rss int64 // peak, bytes
}

func used(b *testing.B) cost {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return cost{time.Duration(u.Utime.Nano() + u.Stime.Nano()), u.Maxrss << 10}
}

// report prints CPU per million rows and the peak memory of the process, which
// is that of the benchmark where it runs alone.
func report(b *testing.B, before cost, rows int) {
	now := used(b)
	b.ReportMetric((now.cpu-before.cpu).Seconds()/(float64(rows)*float64(b.N))*1e6, "cpu-s/Mrow")
	b.ReportMetric(float64(now.rss)/(1<<20), "MB-rss")
	b.ReportMetric(0, "ns/op")
}

// A generator makes rows like those of a capture, the same for the same seed.
type generator struct {
	rng    *rand.Rand
	row    Row
	blocks []uint64
	chunks int
}

func newGenerator(chunks int) *generator {
	return &generator{rng: rand.New(rand.NewPCG(1, 2)), blocks: make([]uint64, 24), chunks: chunks}
}

var benchClients = func() (names []string) {
	for i := range 64 {
		names = append(names, fmt.Sprintf("client-%02d", i))
	}
	return names
}()

// next returns row i: 24 random block ids and, where asked for, chunk lists.
func (g *generator) next(i int) *Row {
	r := &g.row
	for k := range g.blocks {
		g.blocks[k] = g.rng.Uint64()
	}
	x := g.rng.Uint64()
	*r = Row{
		Request: Request{
			ID: int64(i), Arrival: time.Duration(i)*3*time.Millisecond + time.Duration(x&0xfffff),
			Session: Some(int64(x >> 40)), Client: benchClients[x&63], Model: "llama-3-8b", Endpoint: EndpointChat,
			PromptTokens: Some(int32(x >> 8 & 8191)), OutputTokens: Some(int32(x >> 21 & 1023)),
			PromptTokensSource: SourceUsage, OutputTokensSource: SourceUsage,
			MaxTokens: Some[int32](1024), Stream: Some(true), PrefixBlocks: g.blocks,
		},
		Outcome: Outcome{
			TTFT: Some(time.Duration(x >> 30 & 0xfffffff)), E2E: Some(time.Duration(x >> 30 & 0xfffffff << 5)), TTFTSource: TTFTContentEvent,
			Status: Some[int16](200), FinishReason: "stop", Result: ResultOK,
		},
	}
	if g.chunks > 0 {
		r.ChunkTimes = make([]time.Duration, g.chunks)
		r.ChunkTokens = make([]int32, g.chunks)
		at := time.Duration(0)
		for k := range r.ChunkTimes {
			at += 10*time.Millisecond + time.Duration(g.rng.Uint32()&0xfffff)
			r.ChunkTimes[k], r.ChunkTokens[k] = at, 1
		}
	}
	return r
}

func benchFile(b *testing.B, rows, chunks int) string {
	path := filepath.Join(b.TempDir(), "bench.parquet")
	w, err := Create(path, nil, RequireSorted())
	if err != nil {
		b.Fatal(err)
	}
	defer w.Abort()
	g := newGenerator(chunks)
	for i := range rows {
		if err := w.Write(g.next(i)); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}

// BenchmarkGenerate is the cost of making the rows, which BenchmarkWrite and
// BenchmarkJournal include.
func BenchmarkGenerate(b *testing.B) {
	rows := benchRows(b)
	before := used(b)
	for b.Loop() {
		g := newGenerator(0)
		for i := range rows {
			g.next(i)
		}
	}
	report(b, before, rows)
}

func BenchmarkWrite(b *testing.B) {
	rows := benchRows(b)
	before := used(b)
	for b.Loop() {
		os.Remove(benchFile(b, rows, 0))
	}
	report(b, before, rows)
}

func benchmarkRead(b *testing.B, rows, chunks int, opts ...ReadOption) {
	path := benchFile(b, rows, chunks)
	b.ResetTimer()
	before := used(b)
	for b.Loop() {
		r, err := OpenFile(path, opts...)
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for _, err := range r.All() {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		r.Close()
		if n != rows {
			b.Fatalf("read %d of %d rows", n, rows)
		}
	}
	report(b, before, rows)
}

func BenchmarkRead(b *testing.B) { benchmarkRead(b, benchRows(b), 0) }

func BenchmarkReadThreeColumns(b *testing.B) {
	benchmarkRead(b, benchRows(b), 0, Columns("arrival_ns", "prompt_tokens", "output_tokens"))
}
