package traceformat

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// writeJournal makes a journal of rows, one segment for each of the given
// numbers of rows, and closes it if told to.
func writeJournal(t testing.TB, path string, h *Header, rows []Row, segments []int, finish bool) *Journal {
	t.Helper()
	j, err := CreateJournal(path, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range segments {
		for i := range rows[:n] {
			if err := j.Append(&rows[i]); err != nil {
				t.Fatal(err)
			}
		}
		rows = rows[n:]
		if err := j.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if finish {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	} else {
		t.Cleanup(func() { j.Close() })
	}
	return j
}

// crash copies a journal as it would be found after a kill -9.
func crash(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, b)
}

func writeFile(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "t.parquet.journal")
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func shuffled(rows []Row) []Row {
	rows = slices.Clone(rows)
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	return rows
}

func TestSealSortsAndRemovesTheJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.parquet")
	want := mixed(5, 2000)
	h := &Header{Tokenizer: "llama", Rows: Counts{Dropped: map[string]int64{"full": 3}}}
	j := writeJournal(t, JournalPath(path), h, shuffled(want), []int{700, 1, 1299}, false)
	h.Partial = PartialInterrupted
	if err := j.SetHeader(h); err != nil {
		t.Fatal(err)
	}
	if err := Seal(JournalPath(path), path); err == nil {
		t.Error("Seal of a journal that is being written gave no error")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(full()); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Append after Close = %v, want fs.ErrClosed", err)
	}
	if err := Seal(JournalPath(path), path); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, readTrace(t, path)); diff != "" {
		t.Errorf("rows changed (-appended +sealed):\n%s", diff)
	}
	r, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := r.Header()
	if !got.Sorted || got.Partial != PartialInterrupted || got.Rows.Recorded != 2000 || got.Rows.Seen != 2003 || got.Tokenizer != "llama" {
		t.Errorf("header = %+v, want it sorted, interrupted, with 2003 seen and 2000 recorded", got)
	}
	if names := folder(t, filepath.Dir(path)); !slices.Equal(names, []string{"t.parquet"}) {
		t.Errorf("folder holds %q, want the trace alone", names)
	}
}

func folder(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRecoverAfterACrash(t *testing.T) {
	want := mixed(6, 300)
	journal := filepath.Join(t.TempDir(), "live")
	writeJournal(t, journal, &Header{Tokenizer: "x"}, shuffled(want), []int{100, 200}, false)
	journal = crash(t, journal)
	path := filepath.Join(t.TempDir(), "t.parquet")
	rec, err := Recover(journal, path)
	if err != nil {
		t.Fatal(err)
	}
	if rec.Rows != 300 || rec.Complete || !rec.Header || rec.Lost() != 0 {
		t.Errorf("Recover = %+v, want 300 rows, no damage, not complete", rec)
	}
	if diff := cmp.Diff(want, readTrace(t, path)); diff != "" {
		t.Errorf("rows changed (-appended +recovered):\n%s", diff)
	}
	r, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if h := r.Header(); h.Partial != PartialRecovered || h.Tokenizer != "x" {
		t.Errorf("header = %+v, want tokenizer x and partial %q", h, PartialRecovered)
	}
	if _, err := os.Stat(journal); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the journal is still there after a recovery without loss: %v", err)
	}
}

func TestRecoverKeepsAClosedJournalComplete(t *testing.T) {
	journal := filepath.Join(t.TempDir(), "j")
	writeJournal(t, journal, nil, mixed(7, 10), []int{10}, true)
	rec, err := Recover(journal, journal+".parquet")
	if err != nil || !rec.Complete {
		t.Fatalf("Recover = %+v, %v; want it complete", rec, err)
	}
	r, err := OpenFile(journal + ".parquet")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Header().Partial != "" {
		t.Errorf("partial = %q, want a whole recording", r.Header().Partial)
	}
}

// Cut anywhere, a journal gives back every row of the segments that are whole,
// and says what is not.
func TestRecoverTornJournal(t *testing.T) {
	want := mixed(8, 40)
	src := filepath.Join(t.TempDir(), "j")
	writeJournal(t, src, nil, want, []int{10, 10, 10, 10}, true)
	b, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	var ends []int64 // of each segment
	s := newSegmentScanner(bytes.NewReader(b), int64(len(journalMagic)), int64(len(b)))
	for {
		if _, err := s.next(); err != nil {
			break
		}
		ends = append(ends, s.off)
	}
	if len(ends) != 7 {
		t.Fatalf("the journal has %d segments, want 2 headers, 4 of rows, an end", len(ends))
	}
	for cut := 1; cut < len(b); cut++ {
		rows := 0
		boundary := cut <= len(journalMagic)
		for i, end := range ends {
			if end <= int64(cut) && i >= 2 && i < 6 {
				rows += 10
			}
			boundary = boundary || end == int64(cut)
		}
		rec := scanned(t, b[:cut])
		if rec.Rows != int64(rows) || rec.Complete {
			t.Fatalf("cut at %d: %d rows, complete %t; want %d, not complete", cut, rec.Rows, rec.Complete, rows)
		}
		if boundary != (rec.Lost() == 0) {
			t.Fatalf("cut at %d: lost %d bytes (%v)", cut, rec.Lost(), rec.Damage)
		}
	}
}

func scanned(t *testing.T, b []byte) *journalContent {
	t.Helper()
	j := &journalContent{sorter: newSorter("", sortMemory)}
	defer j.sorter.close()
	if err := j.scan(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Fatal(err)
	}
	return j
}

// One flipped bit anywhere costs at most the segment that it is in, and never
// goes unnoticed.
func TestRecoverFlippedBit(t *testing.T) {
	src := filepath.Join(t.TempDir(), "j")
	writeJournal(t, src, &Header{Tokenizer: "x"}, mixed(9, 9), []int{3, 3, 3}, true)
	b, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		for bit := range 8 {
			if bit != i%8 && i > 100 {
				continue // each bit of the head, one of each byte beyond
			}
			c := slices.Clone(b)
			c[i] ^= 1 << bit
			rec := scanned(t, c)
			if rec.Complete || len(rec.Damage) == 0 {
				t.Fatalf("bit %d of byte %d flipped: not noticed", bit, i)
			}
			if d := rec.Damage[0]; d.Offset > int64(i) || d.Offset+d.Bytes <= int64(i) {
				t.Fatalf("byte %d flipped: damage is reported at %d, %d bytes", i, d.Offset, d.Bytes)
			}
			if rec.Rows < 6 {
				t.Fatalf("bit %d of byte %d flipped: %d rows saved, want at least 6", bit, i, rec.Rows)
			}
			if !rec.Header || rec.header.Tokenizer != "x" {
				t.Fatalf("bit %d of byte %d flipped: header lost", bit, i)
			}
		}
	}
}

func TestRecoverKeepsADamagedJournal(t *testing.T) {
	src := filepath.Join(t.TempDir(), "j")
	writeJournal(t, src, nil, mixed(9, 30), []int{10, 10, 10}, true)
	b, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(src, b, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := Seal(src, src+".parquet"); err == nil || !strings.Contains(err.Error(), "trace recover") {
		t.Errorf("Seal of a damaged journal = %v, want an error that names trace recover", err)
	}
	rec, err := Recover(src, src+".parquet")
	if err != nil {
		t.Fatal(err)
	}
	if rec.Rows != 20 || len(rec.Damage) != 1 || !errors.Is(rec.Damage[0], errChecksum) {
		t.Errorf("Recover = %+v, want 20 rows and one checksum", rec)
	}
	if _, err := os.Stat(src); err != nil {
		t.Errorf("the damaged journal is gone: %v", err)
	}
}

func TestEmptyJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.parquet")
	writeJournal(t, JournalPath(path), &Header{Tokenizer: "x"}, nil, nil, true)
	if err := Seal(JournalPath(path), path); err != nil {
		t.Fatal(err)
	}
	if rows := readTrace(t, path); len(rows) != 0 {
		t.Errorf("an empty journal gave %d rows", len(rows))
	}
	if _, err := Recover(writeFile(t, nil), path+"2"); !errors.Is(err, ErrEmpty) {
		t.Errorf("Recover of an empty file = %v, want ErrEmpty", err)
	}
	if _, err := Recover(writeFile(t, []byte("a,b\n1,2\n")), path+"2"); !errors.Is(err, ErrFormat) {
		t.Errorf("Recover of something else = %v, want ErrFormat", err)
	}
	later := append([]byte("RPRJRNL\x02"), appendSegment(nil, segmentHeader, 0, []byte(`{"version":2}`))...)
	if _, err := Recover(writeFile(t, later), path+"2"); !errors.Is(err, ErrVersion) {
		t.Errorf("Recover of a later version = %v, want ErrVersion", err)
	}
}

func TestSealDoesNotWriteOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.parquet")
	if err := os.WriteFile(path, []byte("precious"), 0o666); err != nil {
		t.Fatal(err)
	}
	writeJournal(t, JournalPath(path), nil, mixed(1, 5), []int{5}, true)
	if err := Seal(JournalPath(path), path); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("Seal over a file = %v, want fs.ErrExist", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file that stood there now holds %q, %v", b, err)
	}
	if _, err := CreateJournal(JournalPath(path), nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("CreateJournal over a journal = %v, want fs.ErrExist", err)
	}
	if err := Seal(JournalPath(path), path, Overwrite()); err != nil {
		t.Fatal(err)
	}
	if rows := readTrace(t, path); len(rows) != 5 {
		t.Errorf("%d rows, want 5", len(rows))
	}
}

// What Append has taken is on the disk within a second, without any help.
func TestJournalSyncsByItself(t *testing.T) {
	src := filepath.Join(t.TempDir(), "j")
	j, err := CreateJournal(src, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := j.Append(full()); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(src)
		if err != nil {
			t.Fatal(err)
		}
		if scanned(t, b).Rows == 1 {
			break
		}
		if time.Since(start) > 5*time.Second {
			t.Fatal("the row is not in the file after five seconds")
		}
	}
}

func TestJournalConcurrentAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.parquet")
	j, err := CreateJournal(JournalPath(path), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := mixed(10, 4000)
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			for i := k; i < len(want); i += 4 {
				if err := j.Append(&want[i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Seal(JournalPath(path), path); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, readTrace(t, path)); diff != "" {
		t.Errorf("rows changed (-appended +sealed):\n%s", diff)
	}
}

// A smallDisk is a file on a disk that takes so many bytes and no more.
type smallDisk struct {
	*os.File
	room     int64
	syncFail bool
}

func (d *smallDisk) WriteAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) <= d.room {
		return d.File.WriteAt(b, off)
	}
	n, err := d.File.WriteAt(b[:max(0, d.room-off)], off)
	return n, errors.Join(err, syscall.ENOSPC)
}

func (d *smallDisk) Sync() error {
	if d.syncFail {
		return syscall.EIO
	}
	return d.File.Sync()
}

// A full disk is reported, costs nothing that was taken before, and the rows
// in memory follow once there is room.
func TestJournalFullDisk(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "j"))
	if err != nil {
		t.Fatal(err)
	}
	disk := &smallDisk{File: file, room: 1 << 20}
	j, err := newJournal("j", disk, nil)
	if err != nil {
		t.Fatal(err)
	}
	rows := mixed(11, 60)
	add := func(i int) error {
		if err := j.Append(&rows[i]); err != nil {
			return err
		}
		return j.Sync()
	}
	for i := range 20 {
		if err := add(i); err != nil {
			t.Fatal(err)
		}
	}
	disk.room = j.off + 30 // more than the frame, less than the segment
	if err := add(20); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Sync on a full disk = %v, want ENOSPC", err)
	}
	if err := j.Append(&rows[21]); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Append on a full disk = %v, want ENOSPC", err)
	}
	b, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	if rec := scanned(t, b); rec.Rows != 20 || rec.Lost() != 0 {
		t.Errorf("a full disk left %d rows and %d damaged bytes, want 20 and 0", rec.Rows, rec.Lost())
	}
	disk.room = 1 << 20
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := add(21); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(file.Name()); err != nil {
		t.Fatal(err)
	}
	if rec := scanned(t, b); rec.Rows != 22 || !rec.Complete {
		t.Errorf("after the disk had room again: %d rows, complete %t; want 22, true", rec.Rows, rec.Complete)
	}
}

// A sync that failed once is never trusted again.
func TestJournalFailedSync(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "j"))
	if err != nil {
		t.Fatal(err)
	}
	disk := &smallDisk{File: file, room: 1 << 20}
	j, err := newJournal("j", disk, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append(full()); err != nil {
		t.Fatal(err)
	}
	disk.syncFail = true
	if err := j.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Sync = %v, want EIO", err)
	}
	disk.syncFail = false
	for name, err := range map[string]error{"Append": j.Append(full()), "Sync": j.Sync(), "Close": j.Close()} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s after a failed sync = %v, want EIO", name, err)
		}
	}
}

func FuzzJournal(f *testing.F) {
	h, err := headerSegment([]byte(journalMagic), &Header{})
	if err != nil {
		f.Fatal(err)
	}
	b := appendSegment(h, segmentRows, 1, appendCut(nil, appendFields(nil, full())))
	f.Add(b)
	f.Add(appendSegment(b, segmentEnd, 0, []byte{1, 0, 0, 0, 0, 0, 0, 0}))
	f.Add(b[:len(b)-3])
	f.Add(append(slices.Clone(b[:40]), b...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		j := &journalContent{sorter: newSorter("", sortMemory)}
		defer j.sorter.close()
		if err := j.scan(bytes.NewReader(in), int64(len(in))); err != nil {
			return
		}
		end := int64(0)
		for _, d := range j.Damage {
			if d.Offset < end || d.Bytes <= 0 || d.Offset+d.Bytes > int64(len(in)) {
				t.Fatalf("damage %+v in %d bytes, after %d", d, len(in), end)
			}
			end = d.Offset + d.Bytes
		}
		n := int64(0)
		for _, err := range j.sorter.rows() {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != j.Rows {
			t.Fatalf("%d rows are reported and %d are there", j.Rows, n)
		}
	})
}

// FuzzFields checks that what decodes encodes to what decodes to the same.
func FuzzFields(f *testing.F) {
	f.Add(appendFields(nil, full()))
	f.Add(appendFields(nil, new(Row)))
	for _, r := range mixed(12, 20) {
		f.Add(appendFields(nil, &r))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var x, y Row
		if decodeFields(&x, new(Row), in) != nil {
			return
		}
		b := appendFields(nil, &x)
		if err := decodeFields(&y, new(Row), b); err != nil {
			t.Fatal(err)
		}
		if c := appendFields(nil, &y); !bytes.Equal(b, c) {
			t.Fatalf("rows differ:\n%+v\n%+v", x, y)
		}
		key, err := fieldsKey(b)
		if err != nil || key != x.key() {
			t.Fatalf("key of %+v = %v, %v", x, key, err)
		}
	})
}
