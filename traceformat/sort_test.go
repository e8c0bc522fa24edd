package traceformat

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// memory is a Reader of rows in memory.
type memory struct {
	header Header
	rows   []Row
	err    error // after the rows
}

func (m *memory) Header() *Header { return &m.header }
func (m *memory) Close() error    { return nil }
func (m *memory) All() iter.Seq2[*Row, error] {
	return func(yield func(*Row, error) bool) {
		for i := range m.rows {
			if !yield(m.rows[i].Clone(), nil) {
				return
			}
		}
		if m.err != nil {
			yield(nil, m.err)
		}
	}
}

func TestSort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	want := mixed(20, 3000)
	if err := Sort(&memory{header: Header{Tokenizer: "x"}, rows: shuffled(want)}, path); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, readTrace(t, path)); diff != "" {
		t.Errorf("rows changed:\n%s", diff)
	}
	broken := errors.New("broken")
	if err := Sort(&memory{rows: want, err: broken}, path+"2"); !errors.Is(err, broken) {
		t.Errorf("Sort of a broken source = %v", err)
	}
	if names := folder(t, filepath.Dir(path)); !slices.Equal(names, []string{"t"}) {
		t.Errorf("folder holds %q", names)
	}
}

// Whatever the memory, rows come out in order, ties in the order they came.
func TestSorterSpills(t *testing.T) {
	want := mixed(21, 3000)
	for i := range want {
		want[i].Arrival = time.Duration(i / 100) // many ties of (arrival, id, lap)
		want[i].ID = int64(i / 50)
		want[i].Class = fmt.Sprint(i)
	}
	blocks := slices.Clone(want)
	for i := 0; i < len(blocks); i += 50 { // each tie stays in order
		slices.Reverse(blocks[i : i+50])
	}
	slices.Reverse(blocks)
	for _, budget := range []int{1, 20_000, 200_000, sortMemory} {
		dir := t.TempDir()
		s := newSorter(dir, budget)
		for i := range blocks {
			if err := s.add(&blocks[i]); err != nil {
				t.Fatal(err)
			}
		}
		var got []Row
		for row, err := range s.rows() {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, *row.Clone())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("budget %d: rows changed", budget)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
		if names := folder(t, dir); len(names) != 0 {
			t.Errorf("budget %d: left %q", budget, names)
		}
	}
}

// Rows that are only somewhat out of order make one run, however many.
func TestSorterKeepsOneRun(t *testing.T) {
	s := newSorter(t.TempDir(), 20_000)
	defer s.close()
	rows := mixed(22, 3000)
	for i := 0; i < len(rows); i += 10 {
		slices.Reverse(rows[i : i+10])
	}
	for i := range rows {
		if err := s.add(&rows[i]); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.runs) != 0 || s.out == nil {
		t.Errorf("%d runs are finished, want the first still open", len(s.runs))
	}
}

func TestSorterReportsDamage(t *testing.T) {
	s := newSorter(t.TempDir(), 1)
	defer s.close()
	for _, r := range shuffled(mixed(23, 50)) {
		if err := s.add(&r); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.runs) == 0 {
		t.Fatal("no run was spilled")
	}
	if _, err := s.runs[0].WriteAt([]byte{0xff}, segmentFrame+3); err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range s.rows() {
		last = err
	}
	if !errors.Is(last, errChecksum) {
		t.Errorf("a damaged run = %v, want a checksum error", last)
	}
}

func TestSortSpillFails(t *testing.T) {
	s := newSorter(filepath.Join(t.TempDir(), "absent"), 1)
	defer s.close()
	var err error
	for _, r := range mixed(24, 3) {
		err = errors.Join(err, s.add(&r))
	}
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "spilling") {
		t.Errorf("spilling to no folder = %v", err)
	}
}

func TestMergeShiftsAndRenumbers(t *testing.T) {
	at := func(s int) time.Time { return time.Date(2026, 1, 1, 0, 0, s, 0, time.UTC) }
	row := func(id int64, arrival time.Duration) Row {
		return Row{Request: Request{
			ID: id, Arrival: arrival, Parent: Some(id - 1), Session: Some[int64](5), Client: "c", PrefixBlocks: []uint64{0, 1},
		}, Outcome: Outcome{Sent: Some(arrival + 1), TTFT: Some[time.Duration](9)}}
	}
	a := &memory{header: Header{Start: at(10), Blocks: Blocks{Size: 16}, Rows: Counts{Seen: 3, Recorded: 2, Dropped: map[string]int64{"x": 1}}}, rows: []Row{row(1, 0), row(2, 3*time.Second)}}
	b := &memory{header: Header{Start: at(11), Clock: Clock{Tick: 7}, Rows: Counts{Seen: 1, Recorded: 1}}, rows: []Row{row(1, time.Second)}}
	m, err := Merge(Source{"a", a}, Source{"b", b})
	if err != nil {
		t.Fatal(err)
	}
	rows := rowsOf(t, m)
	h := m.Header()
	if !h.Start.Equal(at(10)) || h.Clock.Tick != 7 || h.Blocks.Size != 16 || h.Rows.Seen != 4 || h.Rows.Recorded != 3 || h.Rows.Dropped["x"] != 1 {
		t.Errorf("header = %+v", h)
	}
	type view struct {
		id, parent, originID int64
		origin               string
		arrival, sent, ttft  time.Duration
	}
	var got []view
	for _, r := range rows {
		got = append(got, view{r.ID, r.Parent.V, r.OriginID.V, r.Origin, r.Arrival, r.Sent.V, r.TTFT.V})
	}
	want := []view{
		{2, 0, 1, "a", 0, 1, 9},
		{3, 1, 1, "b", 2 * time.Second, 2*time.Second + 1, 9},
		{4, 2, 2, "a", 3 * time.Second, 3*time.Second + 1, 9},
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows = %+v\nwant %+v", got, want)
	}
	if rows[0].Session == rows[1].Session || rows[0].Session != rows[2].Session {
		t.Errorf("sessions = %v, %v, %v; want those of one source alike and no others", rows[0].Session, rows[1].Session, rows[2].Session)
	}
	if rows[0].PrefixBlocks[1] == rows[1].PrefixBlocks[1] || rows[0].PrefixBlocks[1] != rows[2].PrefixBlocks[1] {
		t.Error("block ids of two sources without a common key compare equal, or those of one do not")
	}
	if rows[0].Client == rows[1].Client {
		t.Errorf("clients of two sources are both %q", rows[0].Client)
	}
}

func TestMergeUnderOneKey(t *testing.T) {
	src := func() *memory {
		return &memory{header: Header{Keys: "k"}, rows: []Row{{Request: Request{Session: Some[int64](5), Client: "c", PrefixBlocks: []uint64{7}, Origin: "first", OriginID: Some[int64](42)}}}}
	}
	m, err := Merge(Source{"a", src()}, Source{"b", src()})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rowsOf(t, m) {
		if r.Session.V != 5 || r.Client != "c" || r.PrefixBlocks[0] != 7 || r.Origin != "first" || r.OriginID.V != 42 {
			t.Errorf("row = %+v, want session, client, blocks and origin as they were", r)
		}
	}
	if !m.Header().Start.IsZero() || m.Header().Keys != "k" {
		t.Errorf("header = %+v", m.Header())
	}
}

func TestMergeRefuses(t *testing.T) {
	if _, err := Merge(Source{"a", &memory{header: Header{Blocks: Blocks{Size: 16}}}}, Source{"b", &memory{header: Header{Blocks: Blocks{Size: 512}}}}); err == nil || !strings.Contains(err.Error(), "block sizes differ") {
		t.Errorf("Merge of two block sizes = %v", err)
	}
	m, err := Merge(Source{"a", &memory{rows: []Row{{Request: Request{Arrival: 2}}, {Request: Request{Arrival: 1}}}}})
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range m.All() {
		last = err
	}
	if e, ok := errors.AsType[*RowError](last); !ok || !errors.Is(last, ErrUnsorted) || e.Row != 1 || e.Name != "a" {
		t.Errorf("Merge of an unsorted source = %v", last)
	}
}
