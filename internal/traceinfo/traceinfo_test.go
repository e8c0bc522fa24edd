package traceinfo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reprise/traceformat"
)

// memory is a trace held in memory. err ends it, where set.
type memory struct {
	h    traceformat.Header
	rows []traceformat.Row
	err  error
}

func (m *memory) Header() *traceformat.Header { return &m.h }
func (m *memory) Close() error                { return nil }
func (m *memory) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		for i := range m.rows {
			if !yield(&m.rows[i], nil) {
				return
			}
		}
		if m.err != nil {
			yield(nil, m.err)
		}
	}
}

func analyzed(t *testing.T, m *memory) *Info {
	t.Helper()
	in, err := Analyze(t.Context(), m, false)
	if err != nil {
		t.Fatal(err)
	}
	// Whatever is in it, both forms can be written.
	if _, err := json.Marshal(in); err != nil {
		t.Errorf("json: %v", err)
	}
	if err := in.WriteText(&bytes.Buffer{}); err != nil {
		t.Errorf("text: %v", err)
	}
	return in
}

func at(d time.Duration) traceformat.Row {
	return traceformat.Row{Request: traceformat.Request{Arrival: d}}
}

// shared reads a public trace with a few lines of its own, so that the figures
// below do not depend on the importers.
func shared(t *testing.T, name string) *memory {
	t.Helper()
	dir := os.Getenv("REPRISE_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared")
	}
	b, err := os.ReadFile(filepath.Join(dir, "traces", name))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("%s is not there; REPRISE_SHARED names the folder of shared traces", name)
	} else if err != nil {
		t.Fatal(err)
	}
	m := &memory{}
	start := time.Time{}
	for i, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		var r traceformat.Row
		r.ID = int64(i)
		if strings.HasSuffix(name, ".jsonl") {
			var v struct {
				Timestamp int64    `json:"timestamp"`
				Input     int32    `json:"input_length"`
				Output    int32    `json:"output_length"`
				Hashes    []uint64 `json:"hash_ids"`
			}
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatal(err)
			}
			r.Arrival = time.Duration(v.Timestamp) * time.Millisecond
			r.PromptTokens, r.OutputTokens, r.PrefixBlocks = traceformat.Some(v.Input), traceformat.Some(v.Output), v.Hashes
			m.h.Blocks = traceformat.Blocks{Size: 512, Partial: traceformat.PartialKept}
		} else if i > 0 {
			f := strings.Split(strings.TrimSpace(line), ",")
			stamp, err := time.Parse("2006-01-02 15:04:05.9999999", f[0])
			if err != nil {
				t.Fatal(err)
			}
			if i == 1 {
				start = stamp
			}
			in, _ := strconv.Atoi(f[1])
			out, _ := strconv.Atoi(f[2])
			r.Arrival = stamp.Sub(start)
			r.PromptTokens, r.OutputTokens = traceformat.Some(int32(in)), traceformat.Some(int32(out))
		} else {
			continue
		}
		m.rows = append(m.rows, r)
	}
	return m
}

// The published figures of the public traces: burstiness, gaps, atoms, caps.
func TestPublicTraces(t *testing.T) {
	tests := []struct {
		name     string
		rows     int64
		rate     float64
		gapCV    float64
		tick     time.Duration
		idc      []float64
		artefact []bool
		in, out  Atom // the most frequent values
	}{
		{"azure-llm-2023/AzureLLMInferenceTrace_conv.csv", 19366, 5.53, 1.09, 0, []float64{1.06, 1.39, 3.86, 26.7}, []bool{false, false, false, false},
			Atom{Value: 181, Share: 0.022}, Atom{Value: 396, Share: 0.022}},
		{"azure-llm-2023/AzureLLMInferenceTrace_code.csv", 8819, 2.57, 13.2, 0, []float64{2.54, 13.2, 71.6, 151.7}, []bool{false, false, false, false},
			Atom{Value: 7436, Share: 0.023}, Atom{Value: 9, Share: 0.092}},
		{"mooncake/conversation_trace.jsonl", 12031, 3.40, 0, 3 * time.Second, []float64{10.96, 7.90, 2.10, 3.51}, []bool{true, true, false, false},
			Atom{Value: 895, Share: 0.007}, Atom{Value: 3, Share: 0.021}},
	}
	near := func(got, want float64) bool {
		digits := 3 - int(math.Ceil(math.Log10(want)))
		return math.Abs(got-want) <= 0.5001*math.Pow10(-digits)
	}
	for _, tt := range tests {
		t.Run(filepath.Base(tt.name), func(t *testing.T) {
			in := analyzed(t, shared(t, tt.name))
			if in.Rows != tt.rows || !near(in.Rate, tt.rate) {
				t.Errorf("%d rows at %.4f/s, want %d at %g/s", in.Rows, in.Rate, tt.rows, tt.rate)
			}
			if tt.gapCV > 0 && !near(*in.Arrivals.GapCV, tt.gapCV) {
				t.Errorf("gap CV = %.4f, want %g", *in.Arrivals.GapCV, tt.gapCV)
			}
			if tt.tick > 0 && in.Arrivals.Tick != tt.tick || tt.tick == 0 && in.Arrivals.Tick >= time.Millisecond {
				t.Errorf("tick = %v, want %v", in.Arrivals.Tick, tt.tick)
			}
			for i, b := range in.Burstiness {
				if !near(b.IDC, tt.idc[i]) || (b.Artefact != "") != tt.artefact[i] {
					t.Errorf("IDC(%v) = %.3f, artefact %q; want %g, %t", b.Window, b.IDC, b.Artefact, tt.idc[i], tt.artefact[i])
				}
			}
			for _, l := range []struct {
				got  *Lengths
				want Atom
			}{{in.Prompt, tt.in}, {in.Output, tt.out}} {
				if a := l.got.Atoms[0]; a.Value != l.want.Value || math.Abs(a.Share-l.want.Share) > 0.0005 {
					t.Errorf("top atom %+v, want %+v", a, l.want)
				}
			}
		})
	}
}

// The code trace was cut at 7,436 prompt tokens, the conversation trace was
// not cut anywhere near its longest prompt.
func TestCap(t *testing.T) {
	if c := analyzed(t, shared(t, "azure-llm-2023/AzureLLMInferenceTrace_code.csv")).Prompt.Cap; c == nil || c.Value != 7436 {
		t.Errorf("cap of code prompts = %+v, want 7436", c)
	}
	if c := analyzed(t, shared(t, "azure-llm-2023/AzureLLMInferenceTrace_conv.csv")).Prompt.Cap; c != nil {
		t.Errorf("cap of conversation prompts = %+v, want none", c)
	}
}

func TestPublicPrefixSharing(t *testing.T) {
	p := analyzed(t, shared(t, "mooncake/conversation_trace.jsonl")).Prefix
	if p.Blocks != 288500 || p.Unique != 182790 || p.Deeper != 4658 || p.UniqueAtLeast {
		t.Errorf("blocks %d, unique %d, rows sharing more than the root %d; want 288500, 182790, 4658", p.Blocks, p.Unique, p.Deeper)
	}
	sizes, want := []int{100, 1000, 3000, 10000, 30000, 0}, []float64{0.042, 0.045, 0.065, 0.212, 0.326, 0.366}
	for i, h := range p.Hits {
		if h.Blocks != sizes[i] || math.Abs(h.Share-want[i]) > 0.00055 || h.Tokens != int64(sizes[i])*512 {
			t.Errorf("hit at %d blocks (%d tokens) = %.4f, want %d, %.3f", h.Blocks, h.Tokens, h.Share, sizes[i], want[i])
		}
	}
}

func TestTick(t *testing.T) {
	tests := []struct {
		name string
		at   func(i int) time.Duration
		n    int
		want time.Duration
	}{
		{"whole seconds, not every one", func(i int) time.Duration { return time.Duration(i*i%7+i*7) * time.Second }, 40, time.Second},
		{"3 s with jitter", func(i int) time.Duration { return time.Duration(3000*i-i%5/4) * time.Millisecond }, 40, 3 * time.Second},
		{"too few to tell", func(i int) time.Duration { return time.Duration(i) * time.Second }, 15, 0},
		{"nanoseconds", func(i int) time.Duration { return time.Duration(i * i * 1000003) }, 40, 1000003},
	}
	for _, tt := range tests {
		m := &memory{}
		for i := range tt.n {
			m.rows = append(m.rows, at(tt.at(i)))
		}
		slices.SortFunc(m.rows, func(a, b traceformat.Row) int { return int(a.Arrival - b.Arrival) })
		if got := analyzed(t, m).Arrivals.Tick; got != tt.want {
			t.Errorf("%s: tick = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestLengthQuantiles(t *testing.T) {
	var l lengths
	for v := range int64(1000) {
		l.add(v + 1)
	}
	if got, want := l.quantiles([]float64{0, 0.001, 0.5, 0.999, 1}), []int64{1, 1, 500, 999, 1000}; !slices.Equal(got, want) {
		t.Errorf("quantiles = %v, want %v", got, want)
	}
	// Lengths beyond those that are counted one by one are right to 0.1 %, and
	// take little memory.
	l = lengths{}
	for i := range int64(20000) {
		l.add(math.MaxInt32 - i*1000)
	}
	got, want := l.quantiles([]float64{0.5})[0], int64(math.MaxInt32-10000*1000)
	if got > want || float64(got) < float64(want)*0.999 || len(l.counts) > 0 || len(l.coarse) > 100 {
		t.Errorf("p50 = %d, want %d to 0.1 %%; %d exact, %d coarse", got, want, len(l.counts), len(l.coarse))
	}
}

func TestInFlight(t *testing.T) {
	some := traceformat.Some[time.Duration]
	m := &memory{rows: make([]traceformat.Row, 5)}
	set := func(i int, arrival time.Duration, o traceformat.Outcome) {
		m.rows[i] = traceformat.Row{Request: traceformat.Request{ID: int64(i), Arrival: arrival}, Outcome: o}
	}
	const s = time.Second
	set(0, 0, traceformat.Outcome{E2E: some(10 * s)})
	set(1, 2*s, traceformat.Outcome{E2E: some(3 * s)})                                // ends as the next begins: no overlap
	set(2, 5*s, traceformat.Outcome{Abort: some(1 * s)})                              // 5 to 6
	set(3, 5*s, traceformat.Outcome{Sent: some(7 * s), E2E: some(4 * s)})             // 7 to 11
	set(4, 8*s, traceformat.Outcome{Result: traceformat.ResultShed, Error: "no end"}) // not counted
	f := analyzed(t, m).Outcomes.InFlight
	if want := (InFlight{Rows: 4, Peak: 2, PeakAt: 2 * s, Mean: (10 + 3 + 1 + 4) / 8.0}); *f != want {
		t.Errorf("in flight = %+v, want %+v", *f, want)
	}
}

func TestSessionsAndNames(t *testing.T) {
	m := &memory{h: traceformat.Header{Lengths: traceformat.LengthsCumulative}}
	for i := range 60 {
		r := at(time.Duration(i) * time.Second)
		r.Session = traceformat.Some(int64(i % 20)) // 20 sessions of 3 turns
		r.Client = []string{"a", "b", "b"}[i%3]
		if i >= 20 {
			r.Think = traceformat.Some(5 * time.Second)
			r.Parent = traceformat.Some(int64(i - 20))
		}
		m.rows = append(m.rows, r)
	}
	in := analyzed(t, m)
	if s := in.Sessions; s.Sessions != 20 || s.Rows != 60 || s.Turns.P50 != 3 || s.Turns.Max != 3 || s.AtMost || s.Parents != 40 || s.Think.Known != 40 {
		t.Errorf("sessions = %+v, turns %+v, think %+v", s, s.Turns, s.Think)
	}
	if d := cmp.Diff(&Names{Distinct: 2, Rows: 60, Top: []Name{{"b", 40}, {"a", 20}}}, in.Clients); d != "" {
		t.Errorf("clients (-want +got):\n%s", d)
	}
}

// Sessions and names do not grow with the trace, and say that they were cut.
func TestBounds(t *testing.T) {
	var s sessions
	for i := range int64(maxSessions) {
		s.add(i)
	}
	if len(s.young)+len(s.old) > maxSessions || !s.split {
		t.Errorf("%d sessions held, split %t", len(s.young)+len(s.old), s.split)
	}
	var n names
	for i := range maxNames + 5 {
		n.add(strconv.Itoa(i))
	}
	if top := n.top(10); top.Distinct != maxNames || !top.More || top.Rows != maxNames+5 {
		t.Errorf("names = %d, more %t, rows %d", top.Distinct, top.More, top.Rows)
	}
	var f flights
	for i := range maxInFlight + 2 {
		f.add(time.Duration(i), time.Duration(i), 1<<40)
	}
	if !f.overflow || f.edges != nil {
		t.Errorf("%d edges held, overflow %t", len(f.edges), f.overflow)
	}
}

// What a trace is good for follows from what is in it.
func TestSupport(t *testing.T) {
	known := func(i int) traceformat.Row {
		r := at(time.Duration(i) * 7919 * time.Microsecond)
		r.PromptTokens, r.OutputTokens = traceformat.Some(int32(10)), traceformat.Some(int32(5))
		return r
	}
	some := traceformat.Some[time.Duration]
	tests := []struct {
		name string
		h    traceformat.Header
		edit func(i int, r *traceformat.Row)
		what string
		can  string
		why  string
	}{
		{"plain", traceformat.Header{}, nil, "replay with exact token counts", "yes", "known on every row"},
		{"plain", traceformat.Header{}, nil, "KV cache reuse", "no", "no block ids"},
		{"plain", traceformat.Header{}, nil, "comparison with what was recorded", "no", "no outcomes"},
		{"plain", traceformat.Header{}, nil, "conversations", "no", "no session ids"},
		{"ticks", traceformat.Header{}, func(i int, r *traceformat.Row) { r.Arrival = time.Duration(i/2) * time.Second }, "replay with the recorded timing", "partly", "bursts are artefacts"},
		{"spread ticks", traceformat.Header{Clock: traceformat.Clock{Tick: time.Second, Dequantised: "uniform"}}, nil, "replay with the recorded timing", "yes", "made up"},
		{"unsorted", traceformat.Header{}, func(i int, r *traceformat.Row) { r.Arrival = time.Duration(-i) }, "replay with the recorded timing", "partly", "19 of 20 rows arrive before"},
		{"all at once", traceformat.Header{}, func(i int, r *traceformat.Row) { r.Arrival = 0 }, "replay with the recorded timing", "no", "same time"},
		{"no lengths", traceformat.Header{}, func(i int, r *traceformat.Row) { r.OutputTokens = traceformat.Opt[int32]{} }, "replay with exact token counts", "no", "output lengths are unknown"},
		{"some lengths", traceformat.Header{}, func(i int, r *traceformat.Row) {
			if i == 3 {
				r.PromptTokens = traceformat.Opt[int32]{}
			}
		}, "replay with exact token counts", "partly", "prompt lengths unknown on 1 and output lengths on 0 of 20 rows"},
		{"guessed lengths", traceformat.Header{}, func(i int, r *traceformat.Row) { r.PromptTokensSource = traceformat.SourceBytes }, "replay with exact token counts", "partly", "estimated"},
		{"blocks", traceformat.Header{Blocks: traceformat.Blocks{Size: 16, Partial: traceformat.PartialDropped}}, func(i int, r *traceformat.Row) { r.PrefixBlocks = []uint64{1} }, "KV cache reuse", "yes", "partial last block dropped"},
		{"blocks of no size", traceformat.Header{}, func(i int, r *traceformat.Row) { r.PrefixBlocks = []uint64{1} }, "KV cache reuse", "partly", "does not say how many tokens"},
		{"turns of no rule", traceformat.Header{}, func(i int, r *traceformat.Row) { r.Session = traceformat.Some(int64(1)) }, "conversations", "partly", "counts the earlier ones"},
		{"header TTFT", traceformat.Header{}, func(i int, r *traceformat.Row) { r.TTFT, r.TTFTSource = some(1), traceformat.TTFTHeader }, "comparison with what was recorded", "partly", "before the first token"},
		{"TTFT", traceformat.Header{}, func(i int, r *traceformat.Row) { r.TTFT = some(1) }, "comparison with what was recorded", "yes", "every row"},
		{"TTFT alone", traceformat.Header{}, func(i int, r *traceformat.Row) { r.TTFT = some(1) }, "inter-token latency", "no", "chunks"},
		{"sampled", traceformat.Header{Sampling: traceformat.Sampling{Rate: 0.25, By: "session"}}, nil, "load as it was", "partly", "25 %"},
		{"dropped", traceformat.Header{Rows: traceformat.Counts{Seen: 30, Dropped: map[string]int64{"queue": 10}}}, nil, "load as it was", "partly", "10 of 30"},
		{"recovered", traceformat.Header{Partial: "recovered"}, nil, "the whole recording", "no", "recovered"},
	}
	for _, tt := range tests {
		m := &memory{h: tt.h}
		for i := range 20 {
			r := known(i)
			if tt.name == "ticks" {
				r.Arrival = 0
			}
			if tt.edit != nil {
				tt.edit(i, &r)
			}
			m.rows = append(m.rows, r)
		}
		if tt.name == "ticks" { // enough stamps to see the clock
			for i := 20; i < 60; i++ {
				r := known(i)
				tt.edit(i, &r)
				m.rows = append(m.rows, r)
			}
		}
		in := analyzed(t, m)
		i := slices.IndexFunc(in.Support, func(s Support) bool { return s.For == tt.what })
		if i < 0 {
			t.Errorf("%s: nothing is said about %q", tt.name, tt.what)
			continue
		}
		if s := in.Support[i]; s.Can != tt.can || !strings.Contains(s.Why, tt.why) {
			t.Errorf("%s: %s: %s, %q; want %s, %q", tt.name, tt.what, s.Can, s.Why, tt.can, tt.why)
		}
	}
}

func TestEmptyTrace(t *testing.T) {
	in := analyzed(t, &memory{})
	if in.Rows != 0 || len(in.Support) != 1 || in.Support[0].Can != "no" {
		t.Errorf("info of no rows = %+v", in)
	}
}

func TestAnalyzeStops(t *testing.T) {
	damage := &traceformat.RowError{Name: "x", Row: 1, Err: traceformat.ErrTruncated}
	if _, err := Analyze(t.Context(), &memory{rows: make([]traceformat.Row, 1), err: damage}, false); !errors.Is(err, traceformat.ErrTruncated) {
		t.Errorf("error = %v, want the reader's", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Analyze(ctx, &memory{rows: make([]traceformat.Row, 1)}, false); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want context.Canceled", err)
	}
}

// FuzzAnalyze checks that no row, however absurd, breaks an analysis or leaves
// a figure that JSON cannot hold.
func FuzzAnalyze(f *testing.F) {
	f.Add(int64(0), int64(1), int64(-5), int32(-1), int32(1<<30), uint64(7))
	f.Add(int64(math.MaxInt64), int64(math.MinInt64), int64(0), int32(math.MaxInt32), int32(math.MinInt32), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, a, b, e2e int64, in, out int32, block uint64) {
		m := &memory{}
		for i, arrival := range []int64{a, b, a} {
			r := at(time.Duration(arrival))
			r.PromptTokens, r.OutputTokens = traceformat.Some(in), traceformat.Some(out)
			r.PrefixBlocks = []uint64{block, uint64(i)}
			r.Session = traceformat.Some(int64(block))
			r.E2E, r.TTFT, r.Scheduled, r.Sent = traceformat.Some(time.Duration(e2e)), traceformat.Some(time.Duration(b)), traceformat.Some(time.Duration(a)), traceformat.Some(time.Duration(b))
			m.rows = append(m.rows, r)
		}
		analyzed(t, m)
	})
}
