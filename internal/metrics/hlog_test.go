package metrics

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"reprise/internal/stats"
)

// logged reads a latency log with the library's own reader.
func logged(t *testing.T, b []byte) map[string][]*hdrhistogram.Histogram {
	t.Helper()
	tags := map[string][]*hdrhistogram.Histogram{}
	r := hdrhistogram.NewHistogramLogReader(bytes.NewReader(b))
	for {
		h, err := r.NextIntervalHistogram()
		if err != nil {
			t.Fatal(err)
		}
		if h == nil {
			return tags
		}
		tags[h.Tag()] = append(tags[h.Tag()], h)
	}
}

func TestLatencyLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "latency.hlog")
	start := time.Date(2026, 3, 4, 5, 6, 7, 890e6, time.UTC)
	l, err := CreateLatencyLog(path, start)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range handRun() {
		if err := l.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"#[Histogram log format version 1.3]\n", "#[StartTime: 1772600767 (seconds since epoch), 2026-03-04T05:06:07Z]\n", "#[BaseTime: 1772600767 (seconds since epoch)]\n", "Tag=TTFT,1.000000,1.000000,"} {
		if !strings.Contains(string(b), line) {
			t.Errorf("the log lacks %q:\n%s", line, b)
		}
	}
	tags := logged(t, b)
	// Ends: 1.501, 1.221, 2.305, 3.201, (shed at 4), 5.091, 6.051 s.
	tests := []struct {
		tag       string
		intervals int
		n         int64
		max       time.Duration
	}{
		{TagTTFT, 4, 5, 400 * ms1},
		{TagE2E, 4, 5, 1000 * ms1},
		{TagITL, 2, 5 + 5 + 1, 120 * ms1},
		{TagSendLag, 5, 6, 10 * ms1},
	}
	for _, tt := range tests {
		all := stats.NewHist().HDR()
		for _, h := range tags[tt.tag] {
			if all.Merge(h) != 0 {
				t.Errorf("%s: values lost in merging", tt.tag)
			}
		}
		if len(tags[tt.tag]) != tt.intervals || all.TotalCount() != tt.n || math.Abs(float64(all.Max()-int64(tt.max))) > float64(tt.max)/1000 {
			t.Errorf("%s: %d intervals, %d values, max %v; want %d, %d, %v", tt.tag, len(tags[tt.tag]), all.TotalCount(), time.Duration(all.Max()), tt.intervals, tt.n, tt.max)
		}
	}
	if first := tags[TagTTFT][0]; first.StartTimeMs() != 1772600768000 || first.EndTimeMs() != 1772600769000 || first.TotalCount() != 2 {
		t.Errorf("first interval is [%d, %d] ms with %d values", first.StartTimeMs(), first.EndTimeMs(), first.TotalCount())
	}
}

// A row that ends before the open interval is not lost, nor is a value that is
// out of range.
func TestLatencyLogLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "latency.hlog")
	l, err := CreateLatencyLog(path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []int{9, 2, 5} {
		if err := l.Add(sent(time.Duration(r)*s1, event{ms1, 1})); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Add(sent(0, event{2 * time.Hour, 1})); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tags := logged(t, b)
	if h := tags[TagTTFT]; len(h) != 2 || h[0].TotalCount() != 3 || h[1].TotalCount() != 1 {
		t.Errorf("TTFT intervals = %v; want 3 values, then 1", h)
	}
	if !strings.Contains(string(b), "#[TTFT: 1 values beyond 1h0m0s count as 1h0m0s]\n") {
		t.Errorf("no word of the value out of range:\n%s", b)
	}
}

func TestCreateLatencyLogOverwritesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "latency.hlog")
	if err := os.WriteFile(path, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateLatencyLog(path, time.Now()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("CreateLatencyLog over a file: %v, want %v", err, fs.ErrExist)
	}
}

// A full disk is reported, and nothing panics after it.
func TestLatencyLogReportsWriteErrors(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full here, the device that is always full")
	}
	l, err := CreateLatencyLog(filepath.Join(t.TempDir(), "latency.hlog"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.file.Close()
	l.file = full
	l.w.Reset(full)
	first := l.Add(sent(0, event{ms1, 1}))
	second := l.Add(sent(5*s1, event{ms1, 1}))
	if first != nil || second == nil {
		t.Errorf("Add: %v, then %v; want the error when the interval is written", first, second)
	}
	if err := l.Add(sent(9*s1, event{ms1, 1})); err == nil {
		t.Error("Add after an error: nil")
	}
	if err := l.Close(); err == nil {
		t.Error("Close after an error: nil")
	}
}
