package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"

	"reprise/traceformat"
)

// memory is a trace that a test made.
type memory struct {
	header traceformat.Header
	rows   []row
}

func (m *memory) Header() *traceformat.Header { return &m.header }
func (m *memory) Close() error                { return nil }
func (m *memory) All() iter.Seq2[*row, error] {
	return func(yield func(*row, error) bool) {
		for i := range m.rows {
			if !yield(&m.rows[i], nil) {
				return
			}
		}
	}
}

// store writes r as a native trace and opens that.
func store(t testing.TB, r traceformat.Reader) traceformat.Reader {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trace.parquet")
	w, err := traceformat.Create(path, r.Header())
	if err != nil {
		t.Fatal(err)
	}
	for row, err := range r.All() {
		if err == nil {
			err = w.Write(row)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	*w.Header() = *r.Header().Clone() // what only the end of the source knew
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	stored, err := traceformat.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stored.Close(); err != nil {
			t.Error(err)
		}
	})
	return stored
}

// TestThroughNative takes every file that can be written back through a stored
// trace, opened by its content alone.
func TestThroughNative(t *testing.T) {
	files := []string{
		"testdata/azure2023.csv", "testdata/azure2024.csv", "testdata/azure2025.csv", "testdata/burstgpt1.csv",
		"testdata/burstgpt3.csv", "testdata/mooncake.jsonl", "testdata/bailian.jsonl",
	}
	for _, f := range [][2]string{
		{"azure-llm-2023", "AzureLLMInferenceTrace_conv.csv"}, {"azure-llm-2023", "AzureLLMInferenceTrace_code.csv"},
		{"mooncake", "conversation_trace.jsonl"},
	} {
		files = append(files, filepath.Join(sharedDir(), f[0], f[1]))
	}
	for _, file := range files {
		for _, opts := range [][]traceformat.ReadOption{nil, {traceformat.Dequantise(), traceformat.Param("seed", "9")}} {
			if opts != nil && strings.HasSuffix(file, "burstgpt1.csv") {
				continue // one of its stamps is off the tick
			}
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(file), len(opts)), func(t *testing.T) {
				in, err := os.ReadFile(file)
				if err != nil {
					t.Skipf("public traces are not here (%v): set REPRISE_SHARED to their folder", err)
				}
				r, err := traceformat.Open(file, opts...)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				stored := store(t, r)
				var out bytes.Buffer
				rep, err := Export(stored.Header().Origin.Dialect, &out, stored, nil)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(in, out.Bytes()) {
					t.Errorf("came back with other bytes: %s", firstDifference(in, out.Bytes()))
				}
				if len(rep.Lost) > 0 || len(rep.Skipped) > 0 {
					t.Errorf("report = %+v, want nothing lost", rep)
				}
			})
		}
	}
}

// TestOpenDetects opens every kind of file by its content.
func TestOpenDetects(t *testing.T) {
	for file, format := range heads(t) {
		var opts []traceformat.ReadOption
		if strings.Contains(file, "sessions") {
			opts = append(opts, traceformat.Param("lengths", "cumulative"))
		}
		r, err := traceformat.Open(filepath.Join("testdata", file), opts...)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if got := r.Header().Origin.Dialect; got != format {
			t.Errorf("%s is opened as %s, want %s", file, got, format)
		}
		r.Close()
	}
}

func TestBaseten(t *testing.T) {
	r, err := traceformat.Open("testdata/baseten.parquet")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var rows []row
	for row, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, *row.Clone())
	}
	checkHeader(t, r.Header(), &traceformat.Header{
		Start:   time.UnixMilli(1_750_000_000_000).UTC(),
		Clock:   traceformat.Clock{Tick: time.Millisecond},
		Origin:  traceformat.Origin{Dialect: "baseten"},
		Blocks:  traceformat.Blocks{Size: 64, Scheme: "baseten", Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialDropped},
		Lengths: traceformat.LengthsCumulative,
		Rows:    traceformat.Counts{Recorded: 3},
		Extra:   map[string]string{DroppedFields: "output_text,prompt"},
	})
	unique, _ := sessionID("unique-1")
	derived, _ := sessionID("poor_man_session_id:7")
	checkRows(t, rows, []row{
		{
			Request: traceformat.Request{
				ID: 1, Session: id(derived), PromptTokens: tokens(64), OutputTokens: tokens(0), PrefixBlocks: []uint64{5},
				Extra: `{"poor_man_session_id":7,"__version__":"1","queue":0}`,
			},
			Outcome: traceformat.Outcome{Result: traceformat.ResultClientAbort},
		},
		{
			Request: traceformat.Request{
				ID: 0, Arrival: 250 * time.Millisecond, Session: id(unique), Client: "org-a", Model: "m",
				PromptTokens: tokens(130), OutputTokens: tokens(6), PrefixBlocks: []uint64{1<<63 - 1, 1<<53 + 1},
				Extra: `{"provided_session_id":"unique-1","poor_man_session_id":7,"speculation_ratio":1.7,"__version__":"1","features":"f1","total_hashes_len":2,"queue":3}`,
			},
			Outcome: traceformat.Outcome{
				CachedTokens: tokens(64), TTFT: traceformat.Some(120 * time.Millisecond), E2E: traceformat.Some(900 * time.Millisecond),
				Result: traceformat.ResultOK,
			},
		},
		{
			Request: traceformat.Request{
				ID: 2, Arrival: time.Second, Session: id(41), Client: "org-b", Model: "m",
				PromptTokens: tokens(10), OutputTokens: tokens(3), PrefixBlocks: []uint64{},
				Extra: `{"provided_session_id":"41","speculation_ratio":1,"__version__":"1","features":"f2","total_hashes_len":0,"queue":1}`,
			},
			Outcome: traceformat.Outcome{
				CachedTokens: tokens(0), TTFT: traceformat.Some(4 * time.Millisecond), E2E: traceformat.Some(5 * time.Millisecond),
				Result: traceformat.ResultOK,
			},
		},
	})
}

// TestBasetenComesBack exports the file and imports that: all but the texts and
// columns of nobody's schema are there.
func TestBasetenComesBack(t *testing.T) {
	r, err := traceformat.Open("testdata/baseten.parquet")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var rows []row
	var out bytes.Buffer
	rep, err := Export("baseten", &out, &recorder{r, &rows}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Rows != 3 || len(rep.Lost) != 1 || rep.Lost[0].String() != "queue: left out in 3 rows" {
		t.Errorf("report = %+v, want 3 rows and the loss of queue, which is not in the schema", rep)
	}
	got, err := parquet.Read[basetenRow](bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	if got[1].Prompt != "" || got[1].Text != nil {
		t.Errorf("exported texts %q and %v, want none", got[1].Prompt, got[1].Text)
	}
	path := filepath.Join(t.TempDir(), "x.parquet")
	if err := os.WriteFile(path, out.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	again, err := traceformat.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	i := 0
	for got, err := range again.All() {
		if err != nil {
			t.Fatal(err)
		}
		want := rows[i]
		want.ID = got.ID // rows are written in order of arrival
		want.Extra = strings.NewReplacer(`,"queue":0`, "", `,"queue":1`, "", `,"queue":3`, "").Replace(want.Extra)
		if diff := cmp.Diff(withSortedExtra(t, &want), withSortedExtra(t, got)); diff != "" {
			t.Errorf("row %d (-want +got):\n%s", i, diff)
		}
		i++
	}
}

// withSortedExtra orders the fields of Extra by name.
func withSortedExtra(t *testing.T, r *row) *row {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal([]byte(r.Extra), &fields); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(fields) // sorts
	if err != nil {
		t.Fatal(err)
	}
	c := r.Clone()
	c.Extra = string(b)
	return c
}

// recorder keeps the rows that go through it.
type recorder struct {
	traceformat.Reader
	rows *[]row
}

func (r *recorder) All() iter.Seq2[*row, error] {
	return func(yield func(*row, error) bool) {
		for row, err := range r.Reader.All() {
			if err == nil {
				*r.rows = append(*r.rows, *row.Clone())
			}
			if !yield(row, err) {
				return
			}
		}
	}
}

// TestBasetenTypes reads the other types that writers of the schema use.
func TestBasetenTypes(t *testing.T) {
	type typed struct {
		Time     int64    `parquet:"timestamp_start_unix_ms"`
		In       int32    `parquet:"input_tokens"`
		Out      float64  `parquet:"output_tokens"`
		Hashes   []uint64 `parquet:"total_hashes"` // without the list wrapper
		Session  int64    `parquet:"provided_session_id"`
		Canceled bool     `parquet:"request_canceled"`
		E2E      float64  `parquet:"duration_e2e_ms"`
	}
	write := func(rows ...typed) string {
		var b bytes.Buffer
		if err := parquet.Write(&b, rows); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "x.parquet")
		if err := os.WriteFile(path, b.Bytes(), 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	r, err := traceformat.Open(write(typed{5, 1, 2, []uint64{1<<64 - 1, 0}, 7, true, math.NaN()}, typed{6, 1, 2, nil, 7, false, 3}))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var rows []row
	for row, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, *row.Clone())
	}
	checkRows(t, rows, []row{
		{
			Request: traceformat.Request{Session: id(7), PromptTokens: tokens(1), OutputTokens: tokens(2), PrefixBlocks: []uint64{1<<64 - 1, 0}},
			Outcome: traceformat.Outcome{Result: traceformat.ResultClientAbort},
		},
		{
			Request: traceformat.Request{ID: 1, Arrival: time.Millisecond, Session: id(7), PromptTokens: tokens(1), OutputTokens: tokens(2), PrefixBlocks: []uint64{}},
			Outcome: traceformat.Outcome{E2E: traceformat.Some(3 * time.Millisecond), Result: traceformat.ResultOK},
		},
	})
	for _, tt := range []struct {
		row  typed
		want string
	}{
		{typed{Time: -5}, "row 0: timestamp_start_unix_ms -5 is negative"},
		{typed{Time: 1 << 62}, "row 0: timestamp_start_unix_ms 4611686018427387904 is out of range"},
		{typed{In: -1}, "row 0: input_tokens -1 is negative"},
		{typed{Out: 0.5}, "row 0: output_tokens 0.5 is not a whole number"},
		{typed{Out: 2e9}, "row 0: output_tokens 2000000000 is more than"},
	} {
		_, err := traceformat.Open(write(tt.row))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error = %v, want %q in it", tt.row, err, tt.want)
		}
	}
}

// TestBasetenDamage flips and cuts the bytes of a file: whatever comes of it, no
// panic and located errors.
func TestBasetenDamage(t *testing.T) {
	in := testdata(t, "baseten.parquet")
	path := filepath.Join(t.TempDir(), "x.parquet")
	try := func(b []byte) {
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		r, err := openBaseten(path, "x", &traceformat.OpenOptions{})
		if err == nil {
			for _, e := range r.All() {
				err = errors.Join(err, e)
			}
		}
		if err != nil {
			if _, ok := errors.AsType[*traceformat.RowError](err); !ok {
				t.Fatalf("error %v is a %T, want a *traceformat.RowError", err, err)
			}
		}
	}
	for i := 0; i < len(in); i += 19 {
		b := slices.Clone(in)
		b[i] ^= 0x41
		try(b)
		if i%10 == 0 {
			try(in[:i])
		}
	}
}

// captured is a trace as a capture would write it.
func captured() *memory {
	return &memory{
		header: traceformat.Header{
			Start:  time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
			Blocks: traceformat.Blocks{Size: 16, Scheme: "hmac-sha256-chain", Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialDropped},
		},
		rows: []row{
			{
				Request: traceformat.Request{
					ID: 3, Arrival: 1_500_000_001, Session: id(9), Turn: tokens(1), Parent: id(2), Client: "c", Model: "m,1", Endpoint: "chat", Class: "chat",
					PromptTokens: tokens(33), OutputTokens: tokens(4), PrefixBlocks: []uint64{1, 2}, Extra: `{"TIMESTAMP":"x"}`,
				},
				Outcome: traceformat.Outcome{TTFT: traceformat.Some(5 * time.Millisecond), E2E: traceformat.Some(25 * time.Millisecond), Result: traceformat.ResultOK},
			},
			{
				Request: traceformat.Request{ID: 4, Arrival: 2 * time.Second, PromptTokens: tokens(5), PrefixBlocks: []uint64{}},
				Outcome: traceformat.Outcome{Result: traceformat.ResultTimeout, Error: "total"},
			},
		},
	}
}

func TestExportCaptured(t *testing.T) {
	tests := []struct {
		format string
		o      ExportOptions
		want   string
		lost   []string // some of the losses
		skip   int64
	}{
		{
			"azure", ExportOptions{SkipIncomplete: true},
			"TIMESTAMP,ContextTokens,GeneratedTokens\n2026-01-02 03:04:06.5000000,33,4\n",
			[]string{"arrival_ns: cut to 100 ns in 1 rows", "e2e_ns: left out in 1 rows", "extra: left out in 1 rows", "prefix_blocks: left out in 1 rows", "ttft_ns: left out in 1 rows"}, 1,
		},
		{
			"azure", ExportOptions{SkipIncomplete: true, Start: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)},
			"TIMESTAMP,ContextTokens,GeneratedTokens\n2000-01-01 00:00:01.5000000,33,4\n",
			nil, 1,
		},
		{
			"burstgpt", ExportOptions{},
			"Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n" +
				"1.500000001,9,0.025,\"m,1\",33,4,37,API log\n2,,,,5,0,5,API log\n",
			[]string{"class: left out in 1 rows", "outcome: only its tokens are left in 1 rows"}, 0,
		},
		{
			"mooncake", ExportOptions{SkipIncomplete: true, OmitBlocks: true},
			`{"timestamp": 1500.000001, "input_length": 33, "output_length": 4}` + "\n",
			[]string{"prefix_blocks: left out in 1 rows", "session_id: left out in 1 rows"}, 1,
		},
		{
			"bailian", ExportOptions{SkipIncomplete: true, OmitBlocks: true},
			`{"chat_id": 3, "parent_chat_id": 2, "timestamp": 1.500000001, "input_length": 33, "output_length": 4, "type": "chat", "turn": 2}` + "\n",
			[]string{"model: left out in 1 rows", "prefix_blocks: left out in 1 rows"}, 1,
		},
	}
	for _, tt := range tests {
		var out bytes.Buffer
		rep, err := Export(tt.format, &out, captured(), &tt.o)
		if err != nil {
			t.Errorf("%s: %v", tt.format, err)
			continue
		}
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.format, diff)
		}
		var lost []string
		for _, l := range rep.Lost {
			lost = append(lost, l.String())
		}
		for _, want := range tt.lost {
			if !slices.Contains(lost, want) {
				t.Errorf("%s: lost %q, want %q among them", tt.format, lost, want)
			}
		}
		skipped := int64(0)
		for _, n := range rep.Skipped {
			skipped += n
		}
		if skipped != tt.skip {
			t.Errorf("%s: skipped %v, want %d", tt.format, rep.Skipped, tt.skip)
		}
		if r, err := open(t, tt.format, out.Bytes()); err != nil {
			t.Errorf("%s: what was written cannot be read: %v", tt.format, err)
		} else if rows := r.Header().Rows.Recorded; rows != rep.Rows {
			t.Errorf("%s: %d rows read, want the %d that were written", tt.format, rows, rep.Rows)
		}
	}
}

func TestExportBaseten(t *testing.T) {
	var out bytes.Buffer
	rep, err := Export("baseten", &out, captured(), &ExportOptions{SkipIncomplete: true})
	if err != nil {
		t.Fatal(err)
	}
	got, err := parquet.Read[basetenRow](bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	text := func(s string) *string { return &s }
	i64 := func(n int64) *int64 { return &n }
	i32 := func(n int32) *int32 { return &n }
	want := []basetenRow{{
		Time: 1767323046500, In: 33, Out: 4, Hashes: []uint64{1, 2}, Block: i32(16), Session: text("9"), E2E: i64(25), TTFT: i64(5),
		Canceled: i32(0), Model: text("m,1"), Org: text("c"),
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	if !slices.ContainsFunc(rep.Lost, func(l Loss) bool { return l.String() == "arrival_ns: cut to 1 ms in 1 rows" }) {
		t.Errorf("lost %v, want a note on arrival_ns", rep.Lost)
	}
}

// TestExportRefuses lists what a format cannot hold.
func TestExportRefuses(t *testing.T) {
	undated := captured()
	undated.header.Start = time.Time{}
	noBlocks := captured()
	noBlocks.header.Blocks = traceformat.Blocks{}
	small := captured()
	small.header.Blocks.Partial = traceformat.PartialKept
	broken := &memory{header: traceformat.Header{Start: time.Unix(5, 0), Origin: traceformat.Origin{Dialect: "azure"}}, rows: captured().rows}
	broken.rows[0].Extra = "not json"
	tests := []struct {
		format string
		trace  *memory
		want   string
	}{
		{"weka", captured(), `no exporter for "weka", want one of azure, bailian, baseten, burstgpt, mooncake`},
		{"azure", undated, "cannot write azure: the trace has no start date"},
		{"baseten", undated, "cannot write baseten: the trace has no start date"},
		{"mooncake", noBlocks, "cannot write mooncake: the trace has no block ids"},
		{"mooncake", small, "cannot write mooncake: the trace has blocks of 16 tokens and the format of 512"},
		{"bailian", captured(), `cannot write bailian: the trace says "dropped" of a partial last block and the format "padded"`},
		{"azure", captured(), "cannot write azure: row 1 (id 4): incomplete: no output_tokens"},
		{"azure", broken, "cannot write azure: row 0 (id 3): extra is not what this format allows"},
	}
	for _, tt := range tests {
		_, err := Export(tt.format, io.Discard, tt.trace, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error = %v, want %q in it", tt.format, err, tt.want)
		}
	}
}

// TestExportReportsWriteErrors checks that a full disk does not pass in silence.
func TestExportReportsWriteErrors(t *testing.T) {
	for _, format := range Exporters() {
		trace := captured()
		trace.rows = trace.rows[:1]
		_, err := Export(format, fullDisk{}, trace, &ExportOptions{OmitBlocks: true})
		if !errors.Is(err, errDiskFull) {
			t.Errorf("%s: error = %v, want %v", format, err, errDiskFull)
		}
	}
}

var errDiskFull = errors.New("disk full")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errDiskFull }

// TestEditedRowsWin checks that the source's spelling of a value does not come
// back once the value was changed.
func TestEditedRowsWin(t *testing.T) {
	h, rows := readAll(t, "azure", testdata(t, "azure2024.csv"))
	last := rows[4]
	last.Arrival += time.Second
	last.PromptTokens = tokens(9)
	var out bytes.Buffer
	if _, err := Export("azure", &out, &memory{header: *h, rows: []row{last}}, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Split(out.String(), "\n")[1], "2024-05-10 00:00:02.500000+00:00,9,007"; got != want {
		t.Errorf("line = %q, want %q", got, want)
	}
}
