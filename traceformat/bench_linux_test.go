// Run alone, a benchmark prints CPU seconds per million rows and the peak
// memory of its process; the figures of docs/measurements.md are
//
//	REPRISE_BENCH_ROWS=1000000 go test -run '^$' -bench NAME -benchtime 1x ./traceformat
//	REPRISE_BENCH_ROWS=5000000 go test -run '^$' -bench 'Write$' -benchtime 1x ./traceformat
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

func benchmarkRead(b *testing.B, rows int, opts ...ReadOption) {
	path := benchFile(b, rows, 0)
	b.ResetTimer()
	before := used(b)
	for b.Loop() {
		countRows(b, path, rows, opts...)
	}
	report(b, before, rows)
}

func countRows(b *testing.B, path string, rows int, opts ...ReadOption) {
	r, err := OpenFile(path, opts...)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	n := 0
	for _, err := range r.All() {
		if err != nil {
			b.Fatal(err)
		}
		n++
	}
	if n != rows {
		b.Fatalf("read %d of %d rows", n, rows)
	}
}

func BenchmarkRead(b *testing.B) { benchmarkRead(b, benchRows(b)) }

func BenchmarkReadThreeColumns(b *testing.B) {
	benchmarkRead(b, benchRows(b), Columns("arrival_ns", "prompt_tokens", "output_tokens"))
}

// benchChunks is the length of the chunk lists of the benchmarks that have
// some; they move a tenth of the rows.
const benchChunks = 250

// reportValues prints the rate of chunk values, two a chunk, by CPU time.
func reportValues(b *testing.B, before cost, rows int) {
	now := used(b)
	b.ReportMetric(float64(2*benchChunks*rows*b.N)/(now.cpu-before.cpu).Seconds()/1e6, "Mvalues/cpu-s")
}

func BenchmarkWriteChunks(b *testing.B) {
	rows := max(1, benchRows(b)/10)
	before := used(b)
	for b.Loop() {
		os.Remove(benchFile(b, rows, benchChunks))
	}
	reportValues(b, before, rows)
	report(b, before, rows)
}

func BenchmarkReadChunks(b *testing.B) {
	rows := max(1, benchRows(b)/10)
	path := benchFile(b, rows, benchChunks)
	b.ResetTimer()
	before := used(b)
	for b.Loop() {
		countRows(b, path, rows)
	}
	reportValues(b, before, rows)
	report(b, before, rows)
}

// BenchmarkJournal appends rows that end out of order, as those of a recording
// do, up to the clean end of the journal.
func BenchmarkJournal(b *testing.B) {
	rows := benchRows(b)
	before := used(b)
	for b.Loop() {
		os.Remove(benchJournal(b, rows))
	}
	report(b, before, rows)
}

// BenchmarkSeal turns such a journal into a trace.
func BenchmarkSeal(b *testing.B) {
	rows := benchRows(b)
	journal := benchJournal(b, rows)
	b.ResetTimer()
	before := used(b)
	for i := 0; b.Loop(); i++ {
		link := fmt.Sprint(journal, i)
		if err := os.Link(journal, link); err != nil {
			b.Fatal(err)
		}
		if err := Seal(link, link+".parquet"); err != nil {
			b.Fatal(err)
		}
		os.Remove(link + ".parquet")
	}
	report(b, before, rows)
}

// BenchmarkSort puts rows in order that come in none.
func BenchmarkSort(b *testing.B) {
	rows := benchRows(b)
	before := used(b)
	for b.Loop() {
		g := newGenerator(0)
		s := newSorter(b.TempDir(), sortMemory)
		for i := range rows {
			r := g.next(i)
			r.Arrival = time.Duration(g.rng.Int64N(int64(time.Hour)))
			if err := s.add(r); err != nil {
				b.Fatal(err)
			}
		}
		path := filepath.Join(b.TempDir(), "sorted.parquet")
		if err := writeSorted(s.rows(), nil, path, nil); err != nil {
			b.Fatal(err)
		}
		s.close()
		os.Remove(path)
	}
	report(b, before, rows)
}

func benchJournal(b *testing.B, rows int) string {
	path := filepath.Join(b.TempDir(), "bench.journal")
	j, err := CreateJournal(path, nil)
	if err != nil {
		b.Fatal(err)
	}
	g := newGenerator(0)
	for i := range rows {
		r := g.next(i)
		// Requests end in an order that is up to a thousand places off.
		r.Arrival += time.Duration(g.rng.IntN(1000)) * 3 * time.Millisecond
		if err := j.Append(r); err != nil {
			b.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}
