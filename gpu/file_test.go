package gpu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"reprise/traceformat"
)

const ms = time.Millisecond

func readAll(t testing.TB, path string) (FileInfo, []Sample) {
	t.Helper()
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []Sample
	for s, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if n := r.Rows(); n != int64(len(all)) {
		t.Errorf("Rows() = %d, All yields %d", n, len(all))
	}
	return r.Info(), all
}

// What is written comes back, in order of time, counted from the run's zero
// although that is only known late.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	zero := 100 * time.Second
	in := []Sample{
		{Time: zero + 5*ms, Source: "nvml", Device: "gpu0", Metric: GPUPower, Unit: "W", Value: 417.25},
		{Time: zero - 5*ms, Source: "nvml", Device: "gpu0", Metric: GPUEnergy, Unit: "J", Value: 1e9 + 0.001},
		{Time: zero + 9*ms, Source: "a/nvml", Device: "gpu1", Metric: GPUProcessMemory, Attr: "pid=7", Unit: "By", Value: 1 << 37, Late: 30 * ms},
		{Time: zero + 9*ms, Source: "nvml", Metric: MetricGap, Unit: "s", Value: 1.5, Note: "gpu lost"},
	}
	for _, s := range in {
		w.Add(s)
	}
	start := time.Date(2026, 11, 24, 12, 0, 0, 5, time.UTC)
	w.SetInfo(FileInfo{Program: "v1", Sources: []SourceStatus{{Name: "nvml", Readings: 3}}})
	w.SetZero(zero, start)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	info, got := readAll(t, filepath.Dir(path))
	want := []Sample{in[1], in[0], in[2], in[3]}
	for i := range want {
		want[i].Time -= zero
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	if !info.Start.Equal(start) || !info.Sorted || info.Partial != "" || info.Program != "v1" || len(info.Sources) != 1 || info.Dropped != 0 {
		t.Errorf("Info() = %+v", info)
	}
	if _, err := os.Lstat(JournalPath(path)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the journal is still there: %v", err)
	}
	if _, err := Create(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a file = %v, want ErrExist", err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("mode is %v, %v", st.Mode(), err)
	}
}

// An empty run has an empty file, not a missing one.
func TestEmptyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, got := readAll(t, path); len(got) != 0 {
		t.Errorf("got %d samples", len(got))
	}
}

// What was added a second ago survives the death of the program: here, the
// journal is copied while it is being written.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range 5000 {
		w.Add(Sample{Time: time.Duration(i), Source: "s", Metric: GPUPower, Value: float64(i)})
	}
	w.SetZero(1000, time.Unix(1, 0))
	if _, err := Recover(JournalPath(path), filepath.Join(dir, "live")); err == nil {
		t.Error("Recover took the journal of a living program")
	}
	// Wait for the writer's own sync, not for ours.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * ms) {
		w.mu.Lock()
		waiting := len(w.buf)
		w.mu.Unlock()
		if waiting == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the journal was not written")
		}
	}
	w.io.Lock()
	b, err := os.ReadFile(JournalPath(path))
	w.io.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(dir, "dead"+".journal")
	if err := os.WriteFile(dead, b, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := Recover(dead, filepath.Join(dir, "dead"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Samples != 5000 || r.Complete || r.Lost != 0 {
		t.Errorf("Recover = %+v", *r)
	}
	info, got := readAll(t, filepath.Join(dir, "dead"))
	if info.Partial != traceformat.PartialRecovered || len(got) != 5000 || got[0].Time != -1000 {
		t.Errorf("recovered file: %+v, %d samples", info, len(got))
	}
}

// journal builds the journal of n samples in frames of 100.
func journal(t testing.TB, n int) (b []byte, ends []int) {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	frame := fmt.Appendf(nil, `{"mark":%q,"version":1}`+"\n", journalMark)
	flush := func() {
		b = enc.EncodeAll(frame, b)
		ends = append(ends, len(b))
		frame = nil
	}
	for i := range n {
		line, err := json.Marshal(journalLine{Sample: &sampleLine{Time: int64(i), Metric: "m", Value: float64(i)}})
		if err != nil {
			t.Fatal(err)
		}
		frame = append(append(frame, line...), '\n')
		if i%100 == 99 {
			flush()
		}
	}
	return b, ends
}

func recoverBytes(t testing.TB, b []byte) (*Recovery, []Sample, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/x.journal", b, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := Recover(dir+"/x.journal", dir+"/x")
	if err != nil {
		return nil, nil, err
	}
	_, err = os.Lstat(dir + "/x.journal")
	if kept := err == nil; kept != (r.Lost > 0) {
		t.Errorf("%d bytes lost, journal kept: %t", r.Lost, kept)
	}
	_, got := readAll(t, dir+"/x")
	return r, got, nil
}

// A cut journal loses at most the frame that was cut; damage in one frame costs
// that frame alone.
func TestDamage(t *testing.T) {
	b, ends := journal(t, 1000)
	read := func(b []byte) (n int, lost int64) {
		j := &journalReader{src: bytes.NewReader(b)}
		for range j.lines() {
			n++
		}
		return n, j.lost
	}
	rapid.Check(t, func(t *rapid.T) {
		cut := rapid.IntRange(ends[0], len(b)).Draw(t, "cut")
		whole, _ := slices.BinarySearch(ends, cut+1)
		if n, lost := read(b[:cut]); n != whole*100 || lost != int64(cut-ends[whole-1]) {
			t.Fatalf("cut at %d: %d samples and %d bytes lost, want %d and %d", cut, n, lost, whole*100, cut-ends[whole-1])
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.IntRange(ends[0], len(b)-1).Draw(t, "at")
		bad := bytes.Clone(b)
		bad[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		// A flipped bit that zstd does not mind (a reserved one of a header)
		// costs nothing.
		if n, _ := read(bad); n < 900 {
			t.Fatalf("one bad byte at %d left %d of 1000 samples", at, n)
		}
	})
	r, got, err := recoverBytes(t, b[:len(b)-1])
	if err != nil || r.Complete || r.Lost == 0 || len(got) != 900 {
		t.Errorf("Recover of a cut journal: %+v, %d samples, %v", r, len(got), err)
	}
}

func TestNoTelemetry(t *testing.T) {
	for _, in := range []string{"", "hello", string(frameMagic), "{}\n"} {
		if _, _, err := recoverBytes(t, []byte(in)); !errors.Is(err, traceformat.ErrFormat) {
			t.Errorf("Recover(%q) = %v, want ErrFormat", in, err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/x", []byte("PAR1 and so on"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir + "/x"); !errors.Is(err, traceformat.ErrFormat) || !strings.Contains(err.Error(), "x") {
		t.Errorf("Open = %v, want ErrFormat with the name", err)
	}
	if _, err := Open("../testdata/demo.parquet"); !errors.Is(err, traceformat.ErrFormat) {
		t.Errorf("Open of a trace = %v, want ErrFormat", err)
	}
}

// A disk that takes nothing costs samples, never time.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	good := w.file
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no /dev/full here")
	}
	w.io.Lock()
	w.file = full
	w.io.Unlock()
	note := strings.Repeat("x", 100)
	const n = 100_000 // 16 MB of lines
	for i := range n {
		w.Add(Sample{Time: time.Duration(i), Metric: GPUPower, Note: note})
	}
	if d := w.Dropped(); d == 0 || d > n/2 {
		t.Errorf("%d of %d samples dropped", d, n)
	}
	w.flush(false)
	if w.Err() == nil {
		t.Error("Err() = nil on a full disk")
	}
	// Space is found again.
	w.io.Lock()
	w.file = good
	w.io.Unlock()
	full.Close()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	info, got := readAll(t, path)
	if info.Dropped != w.Dropped() || int64(len(got)) != n-info.Dropped {
		t.Errorf("%d samples kept and %d said to be dropped of %d", len(got), info.Dropped, n)
	}
}

func FuzzRecover(f *testing.F) {
	b, _ := journal(f, 300)
	f.Add(b)
	f.Add(b[:len(b)-7])
	f.Add(append(bytes.Clone(b), frameMagic...))
	f.Add(bytes.Repeat(frameMagic, 1000))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		j := &journalReader{src: bytes.NewReader(in)}
		var n int64
		for range j.lines() {
			n++
		}
		if n != j.samples {
			t.Fatalf("%d samples yielded, %d counted", n, j.samples)
		}
		if j.ended && j.end < 0 {
			t.Fatal("a negative count")
		}
	})
}

func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), FileName)
	w, err := Create(path)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 20 {
		w.Add(Sample{Time: time.Duration(i), Source: "s", Metric: GPUPower, Note: "n", Late: 1})
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, in, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path)
		if err != nil {
			return
		}
		defer r.Close()
		n := 0
		for _, err := range r.All() {
			if n++; err != nil || n > 1<<20 {
				return
			}
		}
	})
}

// BenchmarkFile is the cost of a sample from Add to the finished file.
func BenchmarkFile(b *testing.B) {
	path := filepath.Join(b.TempDir(), FileName)
	w, err := Create(path)
	if err != nil {
		b.Fatal(err)
	}
	i := 0
	rng := rand.New(rand.NewPCG(1, 2)) // values that do not compress
	for b.Loop() {
		i++
		w.Add(Sample{Time: time.Duration(i) * ms, Source: "nvml", Device: fmt.Sprint("gpu", i%8), Metric: gpuMetrics[i/8%len(gpuMetrics)].Name, Unit: "W", Value: rng.Float64()})
		if i%50_000 == 0 {
			if err := w.flush(false); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	if w.Dropped() > 0 {
		b.Errorf("%d samples dropped", w.Dropped())
	}
	if st, err := os.Stat(path); err == nil {
		b.ReportMetric(float64(st.Size())/float64(i), "file-B/op")
	}
}
