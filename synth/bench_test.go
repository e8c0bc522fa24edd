// The figures of docs/measurements.md are
//
//	go test -run '^$' -bench . -benchtime 3x -cpu 1 ./synth
package synth

import (
	"path/filepath"
	"testing"

	"reprise/traceformat"
)

// benchSpec is traffic of lengths alone, or of prompts of about 24 blocks.
func benchModel(b *testing.B, text string) *Model {
	s, err := ParseSpec(text)
	if err != nil {
		b.Fatal(err)
	}
	m, err := s.Model()
	if err != nil {
		b.Fatal(err)
	}
	return m
}

const (
	benchLengths = "rate=1000,prompt-tokens=lognormal:800,0.9,output-tokens=lognormal:150,0.8"
	benchBlocks  = "rate=1000,prompt-tokens=lognormal:1300,0.7,output-tokens=lognormal:150,0.8,shared-prefix=0.3"
)

func benchmarkGenerate(b *testing.B, m *Model, rows int64, write bool) {
	blocks := int64(0)
	for b.Loop() {
		g, err := m.Generate(GenOptions{Seed: 1, Rows: rows})
		if err != nil {
			b.Fatal(err)
		}
		blocks = 0
		if !write {
			for r, err := range g.All() {
				if err != nil {
					b.Fatal(err)
				}
				blocks += int64(len(r.PrefixBlocks))
			}
			continue
		}
		w, err := traceformat.Create(filepath.Join(b.TempDir(), "out.parquet"), g.Header(), traceformat.RequireSorted(), traceformat.Overwrite())
		if err != nil {
			b.Fatal(err)
		}
		if err := traceformat.Copy(w, g); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(blocks)/float64(rows), "blocks/row")
}

func BenchmarkLengths(b *testing.B) {
	benchmarkGenerate(b, benchModel(b, benchLengths), 1_000_000, false)
}
func BenchmarkLengthsParquet(b *testing.B) {
	benchmarkGenerate(b, benchModel(b, benchLengths), 1_000_000, true)
}
func BenchmarkBlocks(b *testing.B) { benchmarkGenerate(b, benchModel(b, benchBlocks), 200_000, false) }
func BenchmarkBlocksParquet(b *testing.B) {
	benchmarkGenerate(b, benchModel(b, benchBlocks), 200_000, true)
}

func BenchmarkShippedParquet(b *testing.B) {
	for _, name := range Shipped() {
		m, err := Load(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) { benchmarkGenerate(b, m, 200_000, true) })
	}
}
