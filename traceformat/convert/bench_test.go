package convert

import (
	"bytes"
	"io"
	"runtime"
	"testing"
)

// BenchmarkImport reads public traces from memory.
func BenchmarkImport(b *testing.B) {
	for _, bb := range []struct {
		format string
		path   []string
	}{
		{"azure", []string{"azure-llm-2023", "AzureLLMInferenceTrace_conv.csv"}},
		{"mooncake", []string{"mooncake", "conversation_trace.jsonl"}},
	} {
		b.Run(bb.format, func(b *testing.B) {
			in := shared(b, bb.path...)
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			rows := 0
			for b.Loop() {
				r, err := open(b, bb.format, in)
				if err != nil {
					b.Fatal(err)
				}
				for _, err := range r.All() {
					if err != nil {
						b.Fatal(err)
					}
					rows++
				}
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkExport writes what BenchmarkImport reads.
func BenchmarkExport(b *testing.B) {
	for _, bb := range []struct {
		format string
		path   []string
	}{
		{"azure", []string{"azure-llm-2023", "AzureLLMInferenceTrace_conv.csv"}},
		{"mooncake", []string{"mooncake", "conversation_trace.jsonl"}},
	} {
		b.Run(bb.format, func(b *testing.B) {
			h, rows := readAll(b, bb.format, shared(b, bb.path...))
			written := 0
			for b.Loop() {
				if _, err := Export(bb.format, io.Discard, &memory{header: *h, rows: rows}, nil); err != nil {
					b.Fatal(err)
				}
				written += len(rows)
			}
			b.ReportMetric(float64(written)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// TestMemoryIsBounded reads a long file and looks at the heap on the way.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 400,000 rows")
	}
	line := []byte(`{"timestamp": 5, "input_length": 1025, "output_length": 1, "hash_ids": [1, 2, 3]}` + "\n")
	r, err := mooncakeFormat.Open(io.LimitReader(&repeated{line: line}, int64(len(line))*400_000), "in", nil)
	if err != nil {
		t.Fatal(err)
	}
	rows, high := 0, uint64(0)
	for _, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		if rows++; rows%50_000 == 0 {
			high = max(high, heapInUse())
		}
	}
	if rows != 400_000 {
		t.Fatalf("%d rows, want 400000", rows)
	}
	// 10,000 rows ahead of some 900 bytes and the buffers; the file is 33 MB and
	// its rows would be 400 MB.
	if limit := uint64(40 << 20); high > limit {
		t.Errorf("heap in use grew to %d MiB, want at most %d", high>>20, limit>>20)
	}
}

// repeated is a line without end.
type repeated struct {
	line []byte
	rest bytes.Reader
}

func (r *repeated) Read(b []byte) (int, error) {
	if r.rest.Len() == 0 {
		r.rest.Reset(r.line)
	}
	return r.rest.Read(b)
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}
