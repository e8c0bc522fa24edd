package traceformat

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
)

// fine is a row that breaks no rule.
func fine(id int64) Row {
	return Row{
		Request: Request{
			ID: id, Arrival: time.Duration(id), Session: Some[int64](1), Turn: Some(int32(id)), Endpoint: EndpointChat,
			PromptTokens: Some[int32](33), PromptTokensSource: SourceUsage, PrefixBlocks: []uint64{1, 2, 3}, Extra: `{"a":1}`,
		},
		Outcome: Outcome{
			TTFT: Some[time.Duration](5), E2E: Some[time.Duration](9), TTFTSource: TTFTEngine, Result: ResultOK, Status: Some[int16](200),
			ChunkTimes: []time.Duration{5, 5, 9}, ChunkTokens: []int32{1, 1, 1},
		},
	}
}

func rules(found []Violation) (names []string) {
	for _, v := range found {
		names = append(names, fmt.Sprintf("%d %s", v.Row, v.Rule))
	}
	return names
}

func TestValidateEachRule(t *testing.T) {
	header := Header{Version: Version, Sorted: true, Blocks: Blocks{Size: 16, Partial: PartialKept}, Lengths: LengthsCumulative}
	tests := []struct {
		rule  string
		spoil func(*Row)
	}{
		{"", func(*Row) {}},
		{"range", func(r *Row) { r.PromptTokens = Some[int32](-1); r.PrefixBlocks = nil }},
		{"range", func(r *Row) { r.Status = Some[int16](20) }},
		{"range", func(r *Row) { r.N = Some[int32](0) }},
		{"range", func(r *Row) { r.Temperature = Some(-1.0) }},
		{"range", func(r *Row) { r.CachedTokens = Some[int32](34) }},
		{"range", func(r *Row) { r.Abort = Some[time.Duration](-1) }},
		{"range", func(r *Row) { r.ServedPromptTokens = Some[int32](-1) }},
		{"sorted", func(r *Row) { r.Arrival = 0; r.ID = 0; r.Lap = 0; r.Turn = Some[int32](3); r.ID = -1 }},
		{"unique", func(r *Row) { r.ID = 1; r.Arrival = 1; r.Turn = Some[int32](3) }},
		{"origin", func(r *Row) { r.OriginID = Some[int64](1) }},
		{"parent", func(r *Row) { r.Parent = Some[int64](77) }},
		{"parent", func(r *Row) { r.Parent = Some(r.ID) }},
		{"turn", func(r *Row) { r.Turn = Some[int32](0) }},
		{"turn", func(r *Row) { r.Session = Opt[int64]{} }},
		{"think", func(r *Row) { r.Think = Some[time.Duration](-1) }},
		{"delay", func(r *Row) { r.Delay = Some[time.Duration](-1) }},
		{"endpoint", func(r *Row) { r.Endpoint = "x" }},
		{"outcome", func(r *Row) { r.Result = "x" }},
		{"ttft_source", func(r *Row) { r.TTFTSource = "x" }},
		{"ttft_source", func(r *Row) { r.TTFT = Opt[time.Duration]{} }},
		{"prompt_tokens_source", func(r *Row) { r.PromptTokens = Opt[int32]{} }},
		{"output_tokens_source", func(r *Row) { r.OutputTokensSource = "usage" }},
		{"extra", func(r *Row) { r.Extra = "[1]" }},
		{"utf8", func(r *Row) { r.Model = "\xff" }},
		{"blocks", func(r *Row) { r.PrefixBlocks = r.PrefixBlocks[:2] }},
		{"times", func(r *Row) { r.TTFT = Some[time.Duration](10); r.ChunkTimes, r.ChunkTokens = nil, nil }},
		{"chunks", func(r *Row) { r.ChunkTimes = nil }},
		{"chunks", func(r *Row) { r.ChunkTimes[1] = 4 }},
		{"chunks", func(r *Row) { r.ChunkTokens[1] = -4 }},
		{"times", func(r *Row) { r.ChunkTimes[2] = 10 }},
		{"replay", func(r *Row) { r.Scheduled = Some[time.Duration](77) }},
		{"times", func(r *Row) { r.Sent, r.Headers = Some[time.Duration](7), Some[time.Duration](6) }},
	}
	for i, tt := range tests {
		rows := []Row{fine(0), fine(1), fine(2), fine(3)}
		rows[3].ID, rows[3].Arrival, rows[3].Turn = 3, 3, Some[int32](9)
		tt.spoil(&rows[2])
		got := rules(slices.Collect(Validate(&memory{header: header, rows: rows})))
		var want []string
		if tt.rule != "" {
			want = []string{"2 " + tt.rule}
		}
		if !slices.Equal(got, want) {
			t.Errorf("case %d: %q, want %q", i, got, want)
		}
	}
}

func TestValidateBlockRules(t *testing.T) {
	for _, tt := range []struct {
		rule   PartialRule
		blocks int
		ok     bool
	}{
		{PartialKept, 3, true}, {PartialKept, 2, false}, {PartialPadded, 3, true}, {PartialDropped, 2, true},
		{PartialDropped, 3, false}, {PartialUnknown, 2, true}, {PartialUnknown, 3, true}, {PartialUnknown, 4, false},
	} {
		r := fine(0)
		r.PrefixBlocks = make([]uint64, tt.blocks)
		got := slices.Collect(Validate(&memory{header: Header{Version: Version, Sorted: true, Blocks: Blocks{Size: 16, Partial: tt.rule}}, rows: []Row{r}}))
		if (len(got) == 0) != tt.ok {
			t.Errorf("%d blocks for 33 tokens, rule %q: %v", tt.blocks, tt.rule, got)
		}
	}
}

func TestValidateHeaderAndReader(t *testing.T) {
	r := fine(0)
	r.PrefixBlocks = nil
	h := Header{Version: Version, Blocks: Blocks{Partial: "x"}, Rows: Counts{Seen: 9, Recorded: 2, Dropped: map[string]int64{"a": 1}}}
	got := slices.Collect(Validate(&memory{header: h, rows: []Row{r}}))
	if names := rules(got); !slices.Equal(names, []string{"-1 header", "-1 header", "-1 header"}) {
		t.Errorf("violations = %v", got)
	}
	got = slices.Collect(Validate(&memory{rows: []Row{r}, err: &RowError{Name: "x", Row: 1, Err: errors.New("bad")}}))
	if names := rules(got); !slices.Equal(names, []string{"1 readable"}) {
		t.Errorf("violations = %v", got)
	}
	if got = slices.Collect(Validate(&memory{})); len(got) != 1 || !got[0].Note {
		t.Errorf("an empty trace: %v, want a note", got)
	}
}

// All violations of a file are found, not just the first that a reader stops at.
func TestValidateFile(t *testing.T) {
	type row struct {
		ID      int64 `parquet:"id"`
		Arrival int64 `parquet:"arrival_ns"`
		Prompt  int32 `parquet:"prompt_tokens"`
	}
	path := filepath.Join(t.TempDir(), "t")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := parquet.NewGenericWriter[row](f, parquet.KeyValueMetadata("reprise.sorted", "true"))
	if _, err := w.Write([]row{{1, 5, -1}, {2, 4, -2}, {2, 6, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := rules(slices.Collect(Validate(r)))
	if want := []string{"0 range", "1 range", "1 sorted", "2 unique"}; !slices.Equal(got, want) {
		t.Errorf("violations = %q, want %q", got, want)
	}
}

func TestIDSet(t *testing.T) {
	type pair struct {
		id  int64
		lap int32
	}
	rng := rand.New(rand.NewPCG(1, 1))
	s, want := idSet{limit: 64 << 20}, map[pair]bool{}
	for range 200_000 {
		p := pair{rng.Int64N(100_000) - 50_000, rng.Int32N(2)}
		if rng.IntN(100) == 0 {
			p.id = int64(rng.Uint64())
		}
		fresh, ok := s.add(p.id, p.lap)
		if !ok || fresh == want[p] {
			t.Fatalf("add(%v) = %t, %t; there before: %t", p, fresh, ok, want[p])
		}
		want[p] = true
	}
	for p := range maps.Keys(want) {
		if !s.has(p.id, p.lap) {
			t.Fatalf("%v is missing", p)
		}
	}
	if s.has(60_000, 0) {
		t.Error("has an id that was not added")
	}
}

func TestValidateSaysWhenIDsAreTooMany(t *testing.T) {
	v := &validator{header: &Header{Sorted: true}, seen: idSet{limit: 1000}, turns: map[int64]int32{}}
	for i := range 100 {
		v.check(&Row{Request: Request{ID: int64(i) << 20, Arrival: time.Duration(i)}})
		v.rows++
	}
	if len(v.found) != 1 || !v.found[0].Note || !strings.Contains(v.found[0].Detail, "from row 9 on") {
		t.Errorf("found %v, want one note", v.found)
	}
}
