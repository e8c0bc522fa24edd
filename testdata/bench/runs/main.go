// Runs writes two runs of one trace, as replay would have left them, for timing
// report on: what a request is like is the same in both, the second is 1 %
// slower, and gaps between events have the noise of nanoseconds.
//
//	go run ./testdata/bench/runs -rows 1000000 -events 200 -o DIR    (DIR/a, DIR/b)
package main

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"reprise/traceformat"
)

// spacing is the time between arrivals.
const spacing = time.Millisecond

func main() {
	rows := flag.Int("rows", 1_000_000, "requests of each run")
	events := flag.Int("events", 0, "events of each request; 0 writes no chunk lists")
	out := flag.String("o", "", "`DIR` to write")
	flag.Parse()
	if *out == "" {
		fmt.Fprintln(os.Stderr, "runs: where to? -o DIR")
		os.Exit(2)
	}
	for i, name := range []string{"a", "b"} {
		if err := write(filepath.Join(*out, name), *rows, *events, uint64(i+1), 1+0.01*float64(i)); err != nil {
			fmt.Fprintln(os.Stderr, "runs:", err)
			os.Exit(1)
		}
	}
}

func write(dir string, rows, events int, seed uint64, factor float64) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	manifest := fmt.Sprintf(`{"version":1,"state":"complete","plan":{"digest":"bench","requests":%d,"span_ns":%d},"server":{"backend":"bench"},"trace":{"name":"bench"}}`, rows, int64(rows)*int64(spacing))
	if err := os.WriteFile(filepath.Join(dir, "run.json"), []byte(manifest), 0o644); err != nil {
		return err
	}
	w, err := traceformat.Create(filepath.Join(dir, traceformat.RunTrace), &traceformat.Header{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	asked, noise := rand.New(rand.NewPCG(1, 1)), rand.New(rand.NewPCG(seed, 2))
	r := &traceformat.Row{}
	for i := range rows {
		size := asked.NormFloat64()
		prompt, output := int32(500*math.Exp(0.8*size)), int32(events)
		if events == 0 {
			output = 2 + int32(200*asked.ExpFloat64())
		}
		times, tokens := r.ChunkTimes[:0], r.ChunkTokens[:0]
		*r = traceformat.Row{}
		r.ChunkTimes, r.ChunkTokens = times, tokens
		r.ID, r.Arrival = int64(i), time.Duration(i)*spacing
		r.Session, r.Turn = traceformat.Some(int64(i/3)), traceformat.Some(int32(i%3))
		r.Client = []string{"chat", "code", "batch"}[i%3]
		r.PromptTokens, r.OutputTokens = traceformat.Some(prompt), traceformat.Some(output)
		r.ServedPromptTokens, r.ServedOutputTokens, r.ServedCachedTokens = r.PromptTokens, r.OutputTokens, traceformat.Some(prompt/int32(1+i%3))
		r.PromptDigest = traceformat.Some(int64(i) * 7919)
		r.Scheduled, r.Sent = traceformat.Some(r.Arrival), traceformat.Some(r.Arrival+20*time.Microsecond)
		r.TTFT = traceformat.Some(time.Duration(factor * 50e6 * math.Exp(0.5*size+0.3*noise.NormFloat64())))
		at := r.TTFT.V
		for k := range events {
			if k > 0 {
				at += time.Duration(factor * 12e6 * (0.5 + noise.Float64()))
			}
			r.ChunkTimes, r.ChunkTokens = append(r.ChunkTimes, at), append(r.ChunkTokens, 1)
		}
		if events == 0 {
			at += time.Duration(float64(output) * factor * 12e6 * (0.9 + 0.2*noise.Float64()))
		}
		r.E2E, r.Close = traceformat.Some(at), traceformat.Some(r.Sent.V+at)
		r.Status, r.Result, r.FinishReason = traceformat.Some[int16](200), traceformat.ResultOK, "length"
		if err := w.Write(r); err != nil {
			return err
		}
	}
	return nil
}
