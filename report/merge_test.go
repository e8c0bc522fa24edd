package report

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"reprise/internal/metrics"
	"reprise/internal/stats"
	"reprise/traceformat"
)

const ms = time.Millisecond

var start = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// played makes the rows of a faithful run: lags of microseconds, a few
// failures, hang-ups and one request shed.
func played(n int) []*traceformat.Row {
	rng := rand.New(rand.NewPCG(1, 2))
	d := func(max time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(max))) }
	rows := make([]*traceformat.Row, n)
	at := time.Duration(0)
	for i := range rows {
		at += d(20 * ms)
		r := &traceformat.Row{}
		r.ID, r.Lap, r.Arrival = int64(i/2), int32(i%2), at
		r.Session = traceformat.Some(int64(i / 7))
		r.PromptTokens, r.ServedPromptTokens = traceformat.Some(int32(100)), traceformat.Some(int32(100))
		r.PrefixBlocks = []uint64{uint64(i), 1 << 63}
		r.Scheduled = traceformat.Some(at)
		rows[i] = r
		if i == n/2 {
			r.Result, r.Error = traceformat.ResultShed, "max_in_flight"
			continue
		}
		sent := at + d(200*time.Microsecond)
		r.Wake, r.Conn, r.ConnReused, r.Sent = traceformat.Some(at), traceformat.Some(sent), traceformat.Some(i%5 > 0), traceformat.Some(sent)
		first := 30*ms + d(100*ms)
		r.TTFT, r.TTFTSource = traceformat.Some(first), traceformat.TTFTContentEvent
		tokens := 1 + rng.IntN(40)
		for k := range tokens {
			r.ChunkTimes = append(r.ChunkTimes, first+time.Duration(k)*(5*ms+d(3*ms)))
			r.ChunkTokens = append(r.ChunkTokens, 1)
		}
		slices.Sort(r.ChunkTimes)
		last := r.ChunkTimes[tokens-1]
		r.E2E, r.Close = traceformat.Some(last), traceformat.Some(sent+last+d(ms))
		r.OutputTokens, r.ServedOutputTokens = traceformat.Some(int32(tokens)), traceformat.Some(int32(tokens))
		r.Headers, r.FirstEvent = traceformat.Some(sent+ms), traceformat.Some(sent+2*ms)
		r.Status, r.FinishReason, r.Result = traceformat.Some(int16(200)), "length", traceformat.ResultOK
		switch {
		case i%50 == 49:
			r.Result, r.Error, r.FinishReason = traceformat.ResultServerError, "connection_reset", ""
		case i%60 == 59:
			r.Result, r.Error, r.FinishReason, r.Abort = traceformat.ResultClientAbort, "recorded_abort", "", traceformat.Some(last)
		}
	}
	return rows
}

// manifest is the run.json of shard i of n, or of the whole where n is 1.
func manifest(rows []*traceformat.Row, all, i, n int) *Manifest {
	m := &Manifest{
		Version: manifestVersion, State: StateComplete, Program: Program{Name: "replay", Version: "v1"}, Args: []string{"t.parquet"},
		Options: json.RawMessage(fmt.Sprintf(`{"seed": 1, "speedup": 1, "arrival": {"process": "recorded"}, "shard": {"index": %d, "of": %d}}`, i, n)),
		Trace:   Trace{Name: "t.parquet", Rows: int64(all)},
		Plan:    Plan{Digest: "abc", Span: 30 * time.Second, Warmup: 500 * ms, Rows: int64(len(rows)), All: int64(all)},
		Server:  Server{Backend: "vllm", URL: "http://s:8000", Client: "raw", Info: json.RawMessage(`{"engine": "vllm", "version": "1", "model": "m", "config": {"uptime": "` + fmt.Sprint(i) + `"}}`)},
		Stats:   &Stats{StartedAt: start, Elapsed: 31 * time.Second},
	}
	for _, r := range rows {
		if r.Result == traceformat.ResultShed {
			m.Stats.Shed++
		} else {
			m.Stats.Sent++
		}
	}
	col := metrics.NewCollector(m.config())
	for _, r := range rows {
		col.Add(r)
	}
	m.Summary = col.Summary()
	return m
}

// writeRun makes a run directory.
func writeRun(t *testing.T, dir string, m *Manifest, rows []*traceformat.Row) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(dir, 0o755), m.write(filepath.Join(dir, manifestFile))); err != nil {
		t.Fatal(err)
	}
	w, err := traceformat.Create(filepath.Join(dir, traceformat.RunTrace), &traceformat.Header{
		Start: start, Origin: traceformat.Origin{Program: "replay"}, Blocks: traceformat.Blocks{Size: 16},
	}, traceformat.RequireSorted())
	if err != nil {
		t.Fatal(err)
	}
	sorted := slices.SortedFunc(slices.Values(rows), (*traceformat.Row).Compare)
	for _, r := range sorted {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// split deals rows out to n shards by session.
func split(rows []*traceformat.Row, n int) [][]*traceformat.Row {
	parts := make([][]*traceformat.Row, n)
	for _, r := range rows {
		i := int(r.Session.V*7+3) % n
		parts[i] = append(parts[i], r)
	}
	return parts
}

// writeShards makes n directories of a run in the current folder; change alters
// a manifest before it is written.
func writeShards(t *testing.T, rows []*traceformat.Row, n int, change func(i int, m *Manifest)) (dirs []string) {
	t.Helper()
	for i, part := range split(rows, n) {
		m := manifest(part, len(rows), i, n)
		if change != nil {
			change(i, m)
		}
		dir := fmt.Sprintf("s%d", i)
		writeRun(t, dir, m, part)
		dirs = append(dirs, dir)
	}
	return dirs
}

func read(t *testing.T, path string) (rows []*traceformat.Row, h *traceformat.Header) {
	t.Helper()
	r, err := traceformat.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for row, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row.Clone())
	}
	return rows, r.Header()
}

func mustMerge(t *testing.T, c MergeConfig) *Manifest {
	t.Helper()
	if c.Out == "" {
		c.Out = "whole"
	}
	m, err := Merge(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// n shards are the one run that they were taken from: the same rows, the same
// figures to the last digit, the same latency log to the last byte.
func TestMergedShardsAreTheRun(t *testing.T) {
	t.Chdir(t.TempDir())
	rows := played(1500)
	whole := manifest(rows, len(rows), 0, 1)
	writeRun(t, "one", whole, rows)
	one, err := Analyse(t.Context(), "one", Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{2, 3, 16} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Chdir(t.TempDir())
			dirs := writeShards(t, rows, n, nil)
			rand.Shuffle(n, func(i, j int) { dirs[i], dirs[j] = dirs[j], dirs[i] })
			m := mustMerge(t, MergeConfig{Shards: dirs})
			got, h := read(t, "whole")
			if diff := gocmp.Diff(rows, got); diff != "" {
				t.Errorf("rows (-one run +merged):\n%s", diff)
			}
			if !h.Sorted || !h.Start.Equal(start) || h.Partial != "" || h.Rows.Recorded != int64(len(rows)) || h.Blocks.Size != 16 {
				t.Errorf("header %+v", h)
			}
			summary := *m.Summary
			// That a request was shed is said of its shard as well.
			summary.Fidelity.Reasons = summary.Fidelity.Reasons[:len(one.Summary.Fidelity.Reasons)]
			if diff := gocmp.Diff(one.Summary, &summary); diff != "" {
				t.Errorf("summary (-one run +merged):\n%s", diff)
			}
			if reasons := m.Summary.Fidelity.Reasons; !slices.ContainsFunc(reasons, func(r string) bool { return strings.HasPrefix(r, "shard ") && strings.Contains(r, "shed 1 of ") }) {
				t.Errorf("no reason names the shard that shed: %q", reasons)
			}
			if m.State != StateComplete || m.Plan.Rows != 1500 || m.Stats.Sent != 1499 || m.Stats.Shed != 1 || m.Stats.Unsent != 0 || m.Stats.Elapsed != 31*time.Second || m.Merge.Of != n || len(m.Merge.Shards) != n {
				t.Errorf("manifest: %s, %d planned, %+v, of %d", m.State, m.Plan.Rows, m.Stats, m.Merge.Of)
			}

			want := filepath.Join(t.TempDir(), "one.hlog")
			log, err := metrics.CreateLatencyLog(want, start)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range slices.SortedStableFunc(slices.Values(rows), func(a, b *traceformat.Row) int {
				x, y := metrics.Measure(a), metrics.Measure(b)
				return cmp.Compare(x.End.Or(x.Zero), y.End.Or(y.Zero))
			}) {
				if err := log.Add(r); err != nil {
					t.Fatal(err)
				}
			}
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			a, err1 := os.ReadFile(want)
			b, err2 := os.ReadFile("whole/latency.hlog")
			if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
				t.Errorf("latency.hlog differs from that of the one run (%v)", err)
			}

			// What was written is what was returned, and is a run like any other.
			again, err := Analyse(t.Context(), "whole", Config{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(m.Summary, again.Summary); diff != "" {
				t.Errorf("summary of the merged directory (-merge +report):\n%s", diff)
			}
		})
	}
}

// The percentiles are those of all rows together, computed here by hand.
func TestMergedPercentilesByHand(t *testing.T) {
	t.Chdir(t.TempDir())
	rows := played(1500)
	m := mustMerge(t, MergeConfig{Shards: writeShards(t, rows, 3, nil)})
	var ttft []float64
	for _, r := range rows {
		if r.Result == traceformat.ResultOK && r.Scheduled.V >= 500*ms {
			ttft = append(ttft, float64(r.Sent.V+r.TTFT.V-r.Scheduled.V))
		}
	}
	slices.Sort(ttft)
	got := m.Summary.TTFT.Schedule
	for _, tt := range []struct {
		p   float64
		got metrics.Nanos
	}{{0.5, got.P50.V}, {0.9, got.P90.V}, {0.99, got.P99.V}, {1, got.Max.V}} {
		if want := stats.Quantile(ttft, tt.p); float64(tt.got) != want {
			t.Errorf("TTFT quantile %v = %v, want %v", tt.p, float64(tt.got), want)
		}
	}
	if got.N != int64(len(ttft)) {
		t.Errorf("%d values of TTFT, want %d", got.N, len(ttft))
	}
}

func late(i int, by time.Duration) func(int, *Manifest) {
	return func(k int, m *Manifest) {
		if k == i {
			m.Stats.StartedAt = m.Stats.StartedAt.Add(by)
		}
	}
}

func startAt(at string, and func(int, *Manifest)) func(int, *Manifest) {
	return func(k int, m *Manifest) {
		m.Options = bytes.Replace(m.Options, []byte(`"seed"`), []byte(`"start_at": "`+at+`", "seed"`), 1)
		if and != nil {
			and(k, m)
		}
	}
}

// A shard that began late has sent late: the schedule stays, the clocks of what
// happened move, and the run is not valid.
func TestMergePutsShardsOnOneAxis(t *testing.T) {
	rows := slices.DeleteFunc(played(1500), func(r *traceformat.Row) bool { return r.Result == traceformat.ResultShed })
	tests := []struct {
		name    string
		change  func(int, *Manifest)
		offsets [3]time.Duration
		startAt bool
		valid   bool
	}{
		{"together", nil, [3]time.Duration{}, false, true},
		{"one late", late(1, 3*time.Second), [3]time.Duration{0, 3 * time.Second, 0}, false, false},
		{"one early", late(2, -2*time.Second), [3]time.Duration{2 * time.Second, 2 * time.Second, 0}, false, false},
		{"common start, by microseconds", startAt("2026-03-04T05:06:07Z", late(0, 20*time.Microsecond)), [3]time.Duration{20 * time.Microsecond}, true, true},
		{"common start, missed", startAt("2026-03-04T05:06:07Z", late(0, 40*ms)), [3]time.Duration{40 * ms}, true, false},
		{"common start, before it", startAt("2026-03-04T05:06:07.00001Z", nil), [3]time.Duration{-10 * time.Microsecond, -10 * time.Microsecond, -10 * time.Microsecond}, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			m := mustMerge(t, MergeConfig{Shards: writeShards(t, rows, 3, tt.change)})
			most := time.Duration(0)
			for i, s := range m.Merge.Shards {
				if s.Offset != tt.offsets[i] || !m.Merge.Zero.Add(s.Offset).Equal(s.StartedAt) {
					t.Errorf("shard %d: offset %v, want %v", i, s.Offset, tt.offsets[i])
				}
				most = max(most, s.Offset, -s.Offset)
				if !s.Fidelity.Valid {
					t.Errorf("shard %d is not valid by itself: %q", i, s.Fidelity.Reasons)
				}
			}
			if m.Merge.OffsetMax != most || m.Merge.StartAt != tt.startAt || !m.Stats.StartedAt.Equal(m.Merge.Zero) {
				t.Errorf("bound %v, start at %v, zero %v, started %v", m.Merge.OffsetMax, m.Merge.StartAt, m.Merge.Zero, m.Stats.StartedAt)
			}
			parts := split(rows, 3)
			offset := map[[2]int64]time.Duration{}
			for i, p := range parts {
				for _, r := range p {
					offset[[2]int64{r.ID, int64(r.Lap)}] = tt.offsets[i]
				}
			}
			got, _ := read(t, "whole")
			for i, r := range got {
				want := rows[i].Clone()
				by := offset[[2]int64{r.ID, int64(r.Lap)}]
				for _, c := range []*traceformat.Opt[time.Duration]{&want.Wake, &want.Conn, &want.Sent, &want.Headers, &want.FirstEvent, &want.Close} {
					c.V += by
				}
				if diff := gocmp.Diff(want, r); diff != "" {
					t.Fatalf("row %d, offset %v (-want +got):\n%s", i, by, diff)
				}
			}
			f := m.Summary.Fidelity
			if f.Valid != tt.valid {
				t.Errorf("valid is %t, want %t: %q", f.Valid, tt.valid, f.Reasons)
			}
			if named := slices.ContainsFunc(f.Reasons, func(r string) bool {
				return strings.Contains(r, "from the run's zero: play all shards with one --start-at")
			}); named == tt.valid {
				t.Errorf("reasons: %q", f.Reasons)
			}
			// The server's share is untouched by when the shard began.
			one := metrics.NewCollector(m.config())
			for _, r := range rows {
				one.Add(r)
			}
			if diff := gocmp.Diff(one.Summary().TTFT.Send, m.Summary.TTFT.Send); diff != "" {
				t.Errorf("TTFT from the send (-before +merged):\n%s", diff)
			}
		})
	}
}

func TestMergeRefuses(t *testing.T) {
	rows := played(300)
	on := func(k int, f func(*Manifest)) func(int, *Manifest) {
		return func(i int, m *Manifest) {
			if i == k {
				f(m)
			}
		}
	}
	replaceOption := func(old, with string) func(*Manifest) {
		return func(m *Manifest) {
			if !bytes.Contains(m.Options, []byte(old)) {
				panic(old)
			}
			m.Options = bytes.Replace(m.Options, []byte(old), []byte(with), 1)
		}
	}
	tests := []struct {
		name   string
		change func(int, *Manifest)
		after  func(t *testing.T)
		dirs   []string // s0 s1 s2 if nil
		out    string
		want   string
	}{
		{name: "another seed", change: on(2, replaceOption(`"seed": 1`, `"seed": 2`)), want: "s0/run.json and s2/run.json are not of one run:\n  options.seed is 1 and 2"},
		{name: "a nested option", change: on(1, replaceOption(`"recorded"`, `"poisson"`)), want: `options.arrival.process is "recorded" and "poisson"`},
		{name: "an option of a later version", change: on(1, replaceOption(`"seed"`, `"new": [1], "seed"`)), want: "options.new is not there and [1]"},
		{name: "another plan", change: on(1, func(m *Manifest) { m.Plan.Digest = "xyz" }), want: `plan.digest is "abc" and "xyz"`},
		{name: "another context of the model", change: on(1, func(m *Manifest) { m.Plan.MaxLen = 8192 }), want: `plan.max_model_len is not there and 8192`},
		{name: "another n", change: on(1, replaceOption(`"of": 3`, `"of": 4`)), want: "options.shard.of is 3 and 4"},
		{name: "another start", change: func(i int, m *Manifest) { startAt(fmt.Sprintf("2026-03-04T05:06:0%dZ", i), nil)(i, m) }, want: `options.start_at is "2026-03-04T05:06:00Z" and "2026-03-04T05:06:01Z"`},
		{name: "one without a start", change: on(2, func(m *Manifest) { startAt("2026-03-04T05:06:07Z", nil)(2, m) }), want: `options.start_at is not there and "2026-03-04T05:06:07Z"`},
		{name: "another build", change: on(1, func(m *Manifest) { m.Program.Revision = "deadbeef" }), want: `program.revision is "" and "deadbeef"`},
		{name: "another model", change: on(1, func(m *Manifest) { m.Server.Info = json.RawMessage(`{"engine":"vllm","version":"1","model":"n"}`) }), want: `server.info.model is "m" and "n"`},
		{name: "another engine", change: on(1, func(m *Manifest) { m.Server.Backend = "sglang" }), want: `server.backend is "vllm" and "sglang"`},
		{name: "other limits", change: on(1, func(m *Manifest) { m.Summary.Fidelity.Limits.SendErrorP99 = time.Second }), want: "judged_by.limits.send_error_ns_p99 is 5000000 and 1000000000"},
		{name: "another header", change: on(1, func(m *Manifest) { m.Trace.Header.Tokenizer = "llama" }), want: `trace.header.tokenizer is "" and "llama"`},
		{name: "a repeat", dirs: []string{"s0", "s1", "copy", "s2"}, after: func(t *testing.T) {
			if err := os.CopyFS("copy", os.DirFS("s1")); err != nil {
				t.Fatal(err)
			}
		}, want: "s1 and copy are both shard 1/3"},
		{name: "one directory twice", dirs: []string{"s0", "s1", "s2", "s2/"}, want: "s2 and s2 are both shard 2/3"},
		{name: "a whole run", change: on(0, replaceOption(`"of": 3`, `"of": 0`)), want: "s0 is a whole run, and no shard of one"},
		{name: "a shard beyond n", change: on(0, replaceOption(`"index": 0`, `"index": 7`)), want: "s0/run.json: shard 7 of 3 is none"},
		{name: "one missing", dirs: []string{"s2", "s0"}, want: "shard 1 of 3 is missing, with 98 of the run's 300 requests"},
		{name: "two missing", dirs: []string{"s2"}, want: "shards 0, 1 of 3 are missing, with 202 of the run's 300 requests"},
		{name: "counts that do not add up", change: func(_ int, m *Manifest) { m.Plan.All = 301 }, want: "the shards planned 300 requests together and the run has 301: a run.json was changed"},
		{name: "days apart", change: late(1, 48*time.Hour), want: "shard 1/3 (s1) began 48h0m0s from the run's zero"},
		{name: "rows of another shard", after: func(t *testing.T) {
			b, err := os.ReadFile("s0/trace.parquet")
			if err = errors.Join(err, os.WriteFile("s1/trace.parquet", b, 0o644)); err != nil {
				t.Fatal(err)
			}
		}, want: "s1/trace.parquet: holds 1"},
		{name: "a request in two shards", change: on(1, func(m *Manifest) { m.State = StatePartial }), after: func(t *testing.T) {
			rows, _ := read(t, "s1")
			two, _ := read(t, "s2")
			moved := two[0].Clone()
			moved.Arrival += time.Nanosecond // the same request, though not the same time
			os.Remove("s1/trace.parquet")
			os.Remove("s1/run.json")
			rows = append(rows[1:], moved)
			m := manifest(rows, 300, 1, 3)
			writeRun(t, "s1", m, rows)
		}, want: "is in s1 and in s2"},
		{name: "a request twice in one", after: func(t *testing.T) {
			rows, _ := read(t, "s1")
			os.Remove("s1/trace.parquet")
			os.Remove("s1/run.json")
			rows[1] = rows[0]
			writeRun(t, "s1", manifest(rows, 300, 1, 3), rows)
		}, want: "is twice in s1"},
		{name: "rows without a schedule", after: func(t *testing.T) {
			rows, _ := read(t, "s1")
			os.Remove("s1/trace.parquet")
			os.Remove("s1/run.json")
			m := manifest(rows, 300, 1, 3)
			rows[3].Scheduled.OK = false
			writeRun(t, "s1", m, rows)
		}, want: "s1/trace.parquet: row 3 (id 5): it has no scheduled_ns"},
		{name: "no run.json", after: func(t *testing.T) { os.Remove("s1/run.json") }, want: "open s1/run.json: no such file"},
		{name: "damaged run.json", after: func(t *testing.T) { os.WriteFile("s1/run.json", []byte(`{"version": 1,`), 0o644) }, want: "s1/run.json: unexpected end of JSON input"},
		{name: "later run.json", change: on(1, func(m *Manifest) { m.Version = 2 }), want: "s1/run.json: version 2 of a run.json, want 1"},
		{name: "no trace", after: func(t *testing.T) { os.Remove("s1/trace.parquet") }, want: "s1: "},
		{name: "unfinished trace", after: func(t *testing.T) { os.Rename("s1/trace.parquet", "s1/trace.parquet.journal") }, want: "trace recover"},
		{name: "cut trace", after: func(t *testing.T) { os.Truncate("s1/trace.parquet", 1000) }, want: "s1/trace.parquet: "},
		{name: "onto a shard", out: "s1/../s1", want: "s1/../s1 is one of the shards"},
		{name: "onto a run", out: "old", after: func(t *testing.T) { os.CopyFS("old", os.DirFS("s1")) }, want: "old holds a run already"},
		{name: "killed before it said when it began", change: on(1, func(m *Manifest) { m.State, m.Stats, m.Summary = StateRunning, nil, nil }), want: "s1/run.json does not say when the run began"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			dirs := writeShards(t, rows, 3, tt.change)
			if tt.after != nil {
				tt.after(t)
			}
			if tt.dirs != nil {
				dirs = tt.dirs
			}
			before := listing(t)
			_, err := Merge(t.Context(), MergeConfig{Shards: dirs, Out: cmp.Or(tt.out, "whole")})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Merge: %v\nwant it to hold %q", err, tt.want)
			}
			if diff := gocmp.Diff(before, listing(t)); diff != "" {
				t.Errorf("a refusal changed files (-before +after):\n%s", diff)
			}
		})
	}
}

// listing is every file below the current folder with its size.
func listing(t *testing.T) map[string]int64 {
	t.Helper()
	files := map[string]int64{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var info fs.FileInfo
			info, err = d.Info()
			files[path] = info.Size()
		} else if err == nil {
			files[path] = -1
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// What is missing is counted, whether a whole shard, the rest of one that was
// interrupted, or what one that was killed did not write.
func TestMergeOfParts(t *testing.T) {
	rows := slices.DeleteFunc(played(300), func(r *traceformat.Row) bool { return r.Result == traceformat.ResultShed })
	parts := split(rows, 3)
	has := func(list []string, text string) bool {
		return slices.ContainsFunc(list, func(r string) bool { return strings.Contains(r, text) })
	}
	t.Run("a shard is missing", func(t *testing.T) {
		t.Chdir(t.TempDir())
		dirs := writeShards(t, rows, 3, nil)
		m := mustMerge(t, MergeConfig{Shards: []string{dirs[0], dirs[2]}, Partial: true})
		missing := int64(len(parts[1]))
		if m.State != StatePartial || m.Reason != fmt.Sprintf("1 of 3 shards are missing, and %d requests with them", missing) || !slices.Equal(m.Merge.Missing, []int{1}) || m.Merge.MissingRequests != missing {
			t.Errorf("%s: %s, %+v", m.State, m.Reason, m.Merge.Missing)
		}
		if m.Stats.Unsent != missing || m.Summary.Requests.Unsent != missing || m.Plan.Rows != int64(len(rows)) || !m.Stats.Interrupted {
			t.Errorf("unsent %d, of the summary %d, of %d; want %d", m.Stats.Unsent, m.Summary.Requests.Unsent, m.Plan.Rows, missing)
		}
		if m.Summary.Fidelity.Valid || !has(m.Summary.Fidelity.Reasons, fmt.Sprintf("never sent %d of %d requests", missing, len(rows))) {
			t.Errorf("reasons: %q", m.Summary.Fidelity.Reasons)
		}
		if _, h := read(t, "whole"); h.Partial != m.Reason {
			t.Errorf("the trace says partial: %q", h.Partial)
		}
	})
	t.Run("one was interrupted", func(t *testing.T) {
		t.Chdir(t.TempDir())
		dirs := writeShards(t, rows, 3, nil)
		kept := parts[2][:40]
		os.RemoveAll(dirs[2])
		m := manifest(kept, len(rows), 2, 3)
		m.State, m.Reason, m.Stats.Interrupted, m.Plan.Rows = StatePartial, "interrupted", true, int64(len(parts[2]))
		writeRun(t, dirs[2], m, kept)
		whole := mustMerge(t, MergeConfig{Shards: dirs})
		unsent := int64(len(parts[2]) - 40)
		if whole.State != StatePartial || whole.Reason != "shard 2/3 (s2) is partial: interrupted" || whole.Stats.Unsent != unsent || whole.Summary.Requests.Unsent != unsent || !whole.Stats.Interrupted {
			t.Errorf("%s: %s, unsent %d, want %d", whole.State, whole.Reason, whole.Stats.Unsent, unsent)
		}
		if !has(whole.Summary.Fidelity.Reasons, fmt.Sprintf("shard 2/3 (s2): never sent %d of %d requests", unsent, len(parts[2]))) {
			t.Errorf("reasons: %q", whole.Summary.Fidelity.Reasons)
		}
	})
	t.Run("one was killed", func(t *testing.T) {
		t.Chdir(t.TempDir())
		dirs := writeShards(t, rows, 3, startAt("2026-03-04T05:06:07Z", nil))
		kept := parts[0][:50]
		os.RemoveAll(dirs[0])
		m := manifest(kept, len(rows), 0, 3)
		startAt("2026-03-04T05:06:07Z", nil)(0, m)
		m.State, m.Stats, m.Summary, m.Plan.Rows = StateRunning, nil, nil, int64(len(parts[0]))
		writeRun(t, dirs[0], m, kept)
		whole := mustMerge(t, MergeConfig{Shards: dirs})
		if whole.State != StatePartial || whole.Reason != "shard 0/3 (s0) was killed" || whole.Stats.Unsent != int64(len(parts[0])-50) || whole.Merge.Shards[0].State != StatePartial {
			t.Errorf("%s: %s, unsent %d", whole.State, whole.Reason, whole.Stats.Unsent)
		}
		if whole.Summary.Fidelity.Valid {
			t.Error("it is valid")
		}
	})
	t.Run("one was invalid for what its rows do not show", func(t *testing.T) {
		t.Chdir(t.TempDir())
		dirs := writeShards(t, rows, 3, func(i int, m *Manifest) {
			if i == 1 {
				m.Summary.Fidelity.Verdict, m.Summary.Fidelity.Reasons = metrics.Invalid, []string{"the moon was full"}
			}
		})
		m := mustMerge(t, MergeConfig{Shards: dirs})
		if f := m.Summary.Fidelity; f.Valid || !slices.Equal(f.Reasons, []string{"shard 1/3 (s1): the moon was full"}) {
			t.Errorf("valid %t, %q", f.Valid, f.Reasons)
		}
	})
	t.Run("nothing fell to one", func(t *testing.T) {
		t.Chdir(t.TempDir())
		dirs := []string{"a", "b"}
		writeRun(t, "a", manifest(rows, len(rows), 0, 2), rows)
		writeRun(t, "b", manifest(nil, len(rows), 1, 2), nil)
		if m := mustMerge(t, MergeConfig{Shards: dirs}); !m.Summary.Fidelity.Valid || m.State != StateComplete {
			t.Errorf("%s, %q", m.State, m.Summary.Fidelity.Reasons)
		}
	})
}

func TestMergeReplacesOnlyWhenForced(t *testing.T) {
	t.Chdir(t.TempDir())
	rows := played(100)
	dirs := writeShards(t, rows, 2, nil)
	if err := os.CopyFS("old", os.DirFS("s1")); err != nil {
		t.Fatal(err)
	}
	os.WriteFile("old/trace.parquet.journal", []byte("of a run before"), 0o644)
	os.WriteFile("old/notes.txt", []byte("mine"), 0o644)
	mustMerge(t, MergeConfig{Shards: dirs, Out: "old", Force: true})
	got := slices.Sorted(maps.Keys(listing(t)))
	want := []string{".", "old", "old/latency.hlog", "old/notes.txt", "old/run.json", "old/trace.parquet", "s0", "s0/run.json", "s0/trace.parquet", "s1", "s1/run.json", "s1/trace.parquet"}
	if !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
	if rows, _ := read(t, "old"); len(rows) != 100 {
		t.Errorf("%d rows", len(rows))
	}
}

func TestMergeStopsWhenCancelled(t *testing.T) {
	t.Chdir(t.TempDir())
	dirs := writeShards(t, played(100), 2, nil)
	before := listing(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Merge(ctx, MergeConfig{Shards: dirs, Out: "whole"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Merge: %v", err)
	}
	if diff := gocmp.Diff(before, listing(t)); diff != "" {
		t.Errorf("files (-before +after):\n%s", diff)
	}
}

// Beyond its bounds a row goes early, and none is lost.
func TestEndsIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l.hlog")
	log, err := metrics.CreateLatencyLog(path, start)
	if err != nil {
		t.Fatal(err)
	}
	e := &ends{log: log}
	row := played(1)[0]
	row.Result, row.ChunkTimes, row.ChunkTokens = traceformat.ResultOK, []time.Duration{ms}, []int32{1}
	n := maxWaitingRows + 1000
	for range n {
		if err := e.add(row); err != nil {
			t.Fatal(err)
		}
		if len(e.rows) > maxWaitingRows {
			t.Fatalf("%d rows wait", len(e.rows))
		}
	}
	if e.events != len(e.rows) {
		t.Errorf("%d events are counted of %d", e.events, len(e.rows))
	}
	if err := errors.Join(e.finish(), log.Close()); err != nil {
		t.Fatal(err)
	}
	if len(e.rows) != 0 || e.events != 0 {
		t.Errorf("%d rows and %d events are left", len(e.rows), e.events)
	}
}

// FuzzManifest: whatever a run.json holds, it is read or refused, and what is
// read can be compared with another.
func FuzzManifest(f *testing.F) {
	b, err := json.Marshal(manifest(played(20), 20, 0, 2))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"options":[],"server":{"info":3}}`))
	f.Add([]byte(`{"version":1,"options":{"shard":{"index":-1,"of":9223372036854775807}},"plan":{"requests":-1}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := parseManifest(in)
		if err != nil {
			return
		}
		m.config()
		s := &shard{dir: "d", m: m, of: 2}
		if work, err := s.work(); err == nil {
			if err := agree([]*shard{s, s}); err != nil {
				t.Errorf("%v differs from itself: %v", work, err)
			}
		}
		o := wholeOptions(m.Options)
		if len(o) > 0 && !json.Valid(o) {
			t.Errorf("options %q became %q", m.Options, o)
		}
	})
}
