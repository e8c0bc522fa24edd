package traceformat

import (
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// full is a row that holds a value in every column.
func full() *Row {
	return &Row{
		Request: Request{
			ID: 7, Lap: 2, Origin: "a.parquet", OriginID: Some[int64](-3), Arrival: 1234567890123,
			Session: Some[int64](1 << 62), Parent: Some[int64](3), Turn: Some[int32](4), Think: Some(5 * time.Second),
			Client: "client-ä", Model: "m", Endpoint: EndpointChat, Class: "batch",
			PromptTokens: Some[int32](1000), OutputTokens: Some[int32](0), PromptTokensSource: SourceUsage, OutputTokensSource: SourceEvents,
			MaxTokens: Some[int32](4096), N: Some[int32](1), Stream: Some(true), Temperature: Some(0.7),
			PrefixBlocks: []uint64{0, 1, 1<<63 + 5, 1<<64 - 1}, OutputBlocks: []uint64{}, Delay: Some(time.Millisecond), Extra: `{"a": [1, "x"]}`,
		},
		Outcome: Outcome{
			CachedTokens: Some[int32](64), ReasoningTokens: Some[int32](10), MediaTokens: Some[int32](0),
			TTFT: Some(100 * time.Millisecond), E2E: Some(2 * time.Second), TTFTSource: TTFTContentEvent,
			ChunkTimes: []time.Duration{100, 200, 150_000_000}, ChunkTokens: []int32{1, 2, 3},
			Status: Some[int16](200), FinishReason: "stop", Result: ResultOK, Error: "none", Abort: Some(time.Second),
			Scheduled: Some[time.Duration](1), Wake: Some[time.Duration](2), Conn: Some[time.Duration](3), ConnReused: Some(false),
			Sent: Some[time.Duration](4), Headers: Some[time.Duration](5), FirstEvent: Some[time.Duration](6), Close: Some[time.Duration](7),
			ServedPromptTokens: Some[int32](8), ServedOutputTokens: Some[int32](9), ServedCachedTokens: Some[int32](10), PromptDigest: Some[int64](-1),
			ServerQueue: Some[time.Duration](11), ServerPrefill: Some[time.Duration](12), ServerTTFT: Some[time.Duration](13), ServerE2E: Some[time.Duration](14),
		},
	}
}

// mixed makes n rows in order, some fields of each known and some not.
func mixed(seed uint64, n int) []Row {
	rng := rand.New(rand.NewPCG(seed, 0))
	rows := make([]Row, n)
	for i := range rows {
		r := &rows[i]
		f := full()
		for j := range columns {
			if columns[j].required || rng.IntN(2) == 0 {
				copyColumn(&columns[j], r, f)
			}
		}
		r.ID, r.Lap = int64(i), 0
		r.Arrival = time.Duration(i) * time.Millisecond
		if r.PrefixBlocks != nil {
			r.PrefixBlocks = make([]uint64, rng.IntN(40))
			for k := range r.PrefixBlocks {
				r.PrefixBlocks[k] = rng.Uint64()
			}
		}
		if r.ChunkTimes != nil {
			k := rng.IntN(30)
			r.ChunkTimes = make([]time.Duration, k)
			for k := range r.ChunkTimes {
				r.ChunkTimes[k] = time.Duration(k*20_000_000 + rng.IntN(1000))
			}
			if r.ChunkTokens != nil {
				r.ChunkTokens = make([]int32, k)
			}
		}
		if r.Client != "" {
			r.Client = string(rune('a' + rng.IntN(26)))
		}
	}
	return rows
}

// copyColumn copies one field by way of the journal's codec.
func copyColumn(c *column, dst, src *Row) {
	b := c.field.encode(nil, c.tag, src)
	if len(b) > 0 {
		if err := decodeFields(dst, new(Row), b); err != nil {
			panic(err)
		}
	}
}

func writeTrace(t testing.TB, path string, h *Header, rows []Row, opts ...WriteOption) {
	t.Helper()
	w, err := Create(path, h, opts...)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		if err := w.Write(&rows[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// rowsOf reads r to its end and closes it.
func rowsOf(t testing.TB, r Reader) []Row {
	t.Helper()
	var rows []Row
	for row, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, *row.Clone())
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return rows
}

func readTrace(t testing.TB, path string, opts ...ReadOption) []Row {
	t.Helper()
	r, err := OpenFile(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return rowsOf(t, r)
}

func TestFileHoldsEveryField(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.parquet")
	want := append([]Row{*full(), {Request: Request{ID: 8, Arrival: 1234567890124}}}, mixed(1, 3000)[:0]...)
	writeTrace(t, path, nil, want)
	if diff := cmp.Diff(want, readTrace(t, path)); diff != "" {
		t.Errorf("rows changed (-written +read):\n%s", diff)
	}
}

func TestFileHoldsManyRows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.parquet")
	want := mixed(2, 5000)
	writeTrace(t, path, nil, want)
	if diff := cmp.Diff(want, readTrace(t, path)); diff != "" {
		t.Errorf("rows changed (-written +read):\n%s", diff)
	}
}
