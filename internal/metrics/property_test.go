package metrics

import (
	"encoding/json"
	"io"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reprise/traceformat"
)

// wild draws a row that no validator has seen: every clock and count may be
// missing, negative, out of order or absurd.
func wild(t *rapid.T) *traceformat.Row {
	at := rapid.OneOf(rapid.Int64Range(0, 20e9), rapid.Int64Range(-1e9, 1e9), rapid.Just(int64(math.MaxInt64)), rapid.Just(int64(math.MinInt64)))
	clock := func(name string) duration {
		return duration{V: time.Duration(at.Draw(t, name)), OK: rapid.Bool().Draw(t, name+" known")}
	}
	count := func(name string) traceformat.Opt[int32] {
		n := rapid.OneOf(rapid.Int32Range(0, 3000), rapid.Int32Range(-5, 5), rapid.Just(int32(math.MaxInt32))).Draw(t, name)
		return traceformat.Opt[int32]{V: n, OK: rapid.Bool().Draw(t, name+" known")}
	}
	r := &traceformat.Row{}
	r.Arrival = time.Duration(at.Draw(t, "arrival"))
	r.Scheduled, r.Wake, r.Conn, r.Sent = clock("scheduled"), clock("wake"), clock("conn"), clock("sent")
	r.FirstEvent, r.Close, r.Abort, r.TTFT, r.E2E = clock("first event"), clock("close"), clock("abort"), clock("ttft"), clock("e2e")
	r.ConnReused = traceformat.Opt[bool]{V: rapid.Bool().Draw(t, "reused"), OK: rapid.Bool().Draw(t, "reused known")}
	r.PromptTokens, r.OutputTokens, r.N = count("prompt"), count("output"), count("n")
	r.ServedPromptTokens, r.ServedOutputTokens, r.ServedCachedTokens = count("served prompt"), count("served output"), count("cached")
	r.Result = rapid.SampledFrom([]string{"", traceformat.ResultOK, traceformat.ResultServerError, traceformat.ResultShed, traceformat.ResultClientAbort, "nonsense"}).Draw(t, "result")
	r.FinishReason = rapid.SampledFrom([]string{"", "stop", "length", "abort"}).Draw(t, "finish")
	r.Error = rapid.SampledFrom([]string{"", "recorded_abort", "no_ports"}).Draw(t, "error")
	for range rapid.IntRange(0, 4).Draw(t, "events") {
		r.ChunkTimes = append(r.ChunkTimes, time.Duration(at.Draw(t, "event")))
	}
	for range rapid.IntRange(0, 4).Draw(t, "counted") {
		r.ChunkTokens = append(r.ChunkTokens, count("tokens").V)
	}
	return r
}

// Whatever the rows hold, nothing panics, every row is counted once, and the
// figures can be written and read.
func TestAnyRows(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		conf := Config{
			From: time.Duration(rapid.Int64Range(0, 5e9).Draw(t, "from")), To: time.Duration(rapid.SampledFrom([]int64{0, 10e9}).Draw(t, "to")),
			SLOs: []SLO{{MetricTTFT, s1}, {MetricTPOT, ms1}, {MetricE2E, s1}}, TokenIDs: rapid.Bool().Draw(t, "ids"), Planned: 3,
		}
		col, live := NewCollector(conf), NewLive()
		col.keep = rapid.SampledFrom([]int{0, 5, maxRecords}).Draw(t, "rows kept")
		n++
		hlog, err := CreateLatencyLog(filepath.Join(dir, time.Duration(n).String()), time.Unix(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		var others []*As
		for _, name := range Tools() {
			a, err := NewAs(name, conf.From)
			if err != nil {
				t.Fatal(err)
			}
			others = append(others, a)
		}
		rows := rapid.IntRange(0, 12).Draw(t, "rows")
		for range rows {
			r := wild(t)
			col.Add(r)
			live.Add(r)
			if err := hlog.Add(r); err != nil {
				t.Fatal(err)
			}
			for _, a := range others {
				a.Add(r)
			}
		}
		if err := hlog.Close(); err != nil {
			t.Fatal(err)
		}
		s := col.Summary()
		q := s.Requests
		if q.Rows != int64(rows) || q.Rows != q.Warmup+q.After+q.Measured || q.Measured != q.OK+q.Failed+q.Shed+q.Aborted+q.Unknown {
			t.Errorf("requests do not add up: %+v of %d rows", q, rows)
		}
		failures := int64(0)
		for _, f := range q.Failures {
			failures += f.N
		}
		if failures != q.Failed {
			t.Errorf("failures by class are %d, failed %d", failures, q.Failed)
		}
		if s.Fidelity.Valid && s.Fidelity.Reasons != nil || s.Goodput.Met > q.OK || s.InFlight.Peak > q.Rows {
			t.Errorf("fidelity %+v, goodput %+v, in flight %+v", s.Fidelity, s.Goodput, s.InFlight)
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &Summary{}); err != nil {
			t.Fatal(err)
		}
		if err := RenderText(io.Discard, s, 80, true); err != nil {
			t.Fatal(err)
		}
		live.Snapshot(s1, 1)
		for _, a := range others {
			if err := RenderFigures(io.Discard, "any", a.Figures()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A prefix of the run must not look better than it is because the rest is
// missing: with more failures the percentiles with failures never fall.
func TestFailuresNeverImproveLatency(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0, 1e12), 40, 100).Draw(t, "values")
		failures := rapid.Int64Range(0, 50).Draw(t, "failures")
		a, b := exactDist(slices.Clone(values), failures), exactDist(slices.Clone(values), failures+1)
		for _, q := range percentiles {
			if x, y := q.of(&a), q.of(&b); x.OK && x.V > y.V {
				t.Errorf("%s fell from %v to %v with a failure more", q.name, x.V, y.V)
			}
		}
	})
}

func FuzzParseSLO(f *testing.F) {
	for _, s := range []string{"ttft<500ms", "tpot < 1.5 s", "e2e<1h,ttft<1ns", "ttft<", "<", "itl<5ms", "ttft<9223372036854775807ns"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		slos, err := ParseSLOs([]string{text})
		if err != nil {
			return
		}
		for _, s := range slos {
			again, err := ParseSLOs([]string{s.String()})
			if err != nil || len(again) != 1 || again[0] != s {
				t.Errorf("%q reads as %v, which reads as %v, %v", text, s, again, err)
			}
		}
	})
}
