package metrics

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"reprise/internal/stats"
	"reprise/traceformat"
)

// Tags of a latency log.
const (
	TagTTFT    = "TTFT"    // from the schedule, successes
	TagE2E     = "E2E"     // from the schedule, successes
	TagITL     = "ITL"     // successes, one value per token
	TagSendLag = "SENDLAG" // |sent - scheduled|, every request sent
)

// A LatencyLog writes the latencies of a run as an HdrHistogram log (version
// 1.3, V2 encoding, tagged), an interval per second of run time for each tag
// that has values in it. Values are nanoseconds; what is longer than an hour
// counts as one. A row falls into the interval of its end, or into the open one
// if that is later: rows come in order of completion. Intervals of one tag add
// up to the whole run, and those of several logs to all of them.
type LatencyLog struct {
	file *os.File
	w    *bufio.Writer
	log  *hdrhistogram.HistogramLogWriter

	base     time.Time
	width    int64 // of an interval in seconds
	interval int64 // the open one, counted from 0
	begun    bool
	tags     []taggedHist
	err      error
}

type taggedHist struct {
	tag  string
	hist *stats.Hist
}

// CreateLatencyLog makes the file, which must not exist. start is the wall
// clock of the run's zero, to the second.
func CreateLatencyLog(path string, start time.Time) (*LatencyLog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	l := &LatencyLog{file: f, w: bufio.NewWriter(f), base: start.Truncate(time.Second), width: 1}
	l.log = hdrhistogram.NewHistogramLogWriter(l.w)
	for _, tag := range []string{TagTTFT, TagITL, TagE2E, TagSendLag} {
		l.tags = append(l.tags, taggedHist{tag, stats.NewHist()})
	}
	ms := l.base.UnixMilli()
	l.log.SetBaseTime(ms)
	err = errors.Join(
		l.log.OutputComment("[Reprise: latencies in nanoseconds]"), l.log.OutputLogFormatVersion(),
		l.log.OutputStartTime(ms), l.log.OutputBaseTime(ms), l.log.OutputLegend(), l.w.Flush(),
	)
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return l, nil
}

// Widen makes an interval at least so long, before the first row: a run in virtual
// time is over before its seconds could be written.
func (l *LatencyLog) Widen(d time.Duration) { l.width = max(1, int64(d.Seconds())) }

// Add takes one row, which stays the caller's.
func (l *LatencyLog) Add(row *traceformat.Row) error {
	r := Measure(row)
	if n := int64(r.End.Or(r.Zero)/time.Second) / l.width; !l.begun || n > l.interval {
		l.flush()
		l.begun, l.interval = true, n
	}
	ttft, itl, e2e, lags := l.tags[0].hist, l.tags[1].hist, l.tags[2].hist, l.tags[3].hist
	if lag, ok := r.Lag.Get(); ok {
		lags.Add(max(lag.Total, -lag.Total), 1)
	}
	if r.Class == OK {
		if d, ok := r.FromSchedule(r.TTFT).Get(); ok {
			ttft.Add(d, 1)
		}
		if d, ok := r.FromSchedule(r.E2E).Get(); ok {
			e2e.Add(d, 1)
		}
		eachGap(row, func(gap time.Duration, tokens int64) {
			if tokens > 0 {
				itl.Add(gap/time.Duration(tokens), tokens)
			}
		})
	}
	return l.err
}

// flush writes the open interval.
func (l *LatencyLog) flush() {
	for _, t := range l.tags {
		if t.hist.N() == 0 || l.err != nil {
			continue
		}
		h := t.hist.HDR()
		h.SetTag(t.tag)
		h.SetStartTimeMs(l.base.UnixMilli() + l.interval*l.width*1000)
		h.SetEndTimeMs(l.base.UnixMilli() + (l.interval+1)*l.width*1000)
		if over := t.hist.Over(); over > 0 {
			l.err = l.log.OutputComment(fmt.Sprintf("[%s: %d values beyond %v count as %[3]v]", t.tag, over, stats.HistMax))
		}
		l.err = errors.Join(l.err, l.log.OutputIntervalHistogram(h))
		t.hist.Reset()
	}
	l.err = errors.Join(l.err, l.w.Flush())
}

// Close writes the last interval and closes the file.
func (l *LatencyLog) Close() error {
	l.flush()
	return errors.Join(l.err, l.file.Sync(), l.file.Close())
}
