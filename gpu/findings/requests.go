package findings

import (
	"math"
	"time"

	"reprise/internal/metrics"
	"reprise/internal/stats"
	"reprise/traceformat"
)

// Requests gathers what is needed of a run's rows, in any order, in about a
// megabyte however many there are. It is for one goroutine.
type Requests struct {
	line timeline

	ttft, e2e, itl sums // ours, of all requests of the run
	stay           sums // from send to end

	serverTTFT, serverE2E *signed // ours less the engine's, request by request
	serverQueue           *signed // the engine's alone
	output                int64   // tokens received
	prompt                int64   // tokens processed, where the engine said
}

// sums are of durations.
type sums struct {
	n   int64
	sum float64 // s
}

func (s *sums) add(d time.Duration) {
	s.n++
	s.sum += d.Seconds()
}

// NewRequests returns an empty Requests.
func NewRequests() *Requests {
	return &Requests{line: timeline{width: cellWidth}, serverTTFT: newSigned(), serverE2E: newSigned(), serverQueue: newSigned()}
}

// Add takes a row, which stays the caller's.
func (q *Requests) Add(row *traceformat.Row) {
	r := metrics.Measure(row)
	sent, ok := r.Sent.Get()
	if !ok {
		return
	}
	q.output += int64(r.OutputTokens.Or(0))
	q.prompt += int64(r.PromptTokens.Or(0))
	if r.TTFT.OK && row.TTFTSource != traceformat.TTFTFirstByte {
		q.ttft.add(r.TTFT.V)
		if r.Class == metrics.OK && r.E2E.OK {
			q.e2e.add(r.E2E.V)
			if n := r.OutputTokens.Or(0); n > 1 {
				q.itl.n += int64(n - 1)
				q.itl.sum += (r.E2E.V - r.TTFT.V).Seconds()
			}
		}
		if v, ok := row.ServerTTFT.Get(); ok {
			q.serverTTFT.add(r.TTFT.V - v)
		}
	}
	if v, ok := row.ServerE2E.Get(); ok && r.E2E.OK {
		q.serverE2E.add(r.E2E.V - v)
	}
	if v, ok := row.ServerQueue.Get(); ok {
		q.serverQueue.add(v)
	}
	if end, ok := r.End.Get(); ok && end > sent {
		q.stay.add(end - sent)
		prompt := r.PromptTokens
		if !prompt.OK {
			prompt = r.AskedPromptTokens
		}
		first, last := end, end
		if r.TTFT.OK {
			first = sent + r.TTFT.V
		}
		if r.E2E.OK {
			last = sent + r.E2E.V
		}
		q.line.add(sent, end, first, last, float64(prompt.Or(0)), float64(r.OutputTokens.Or(0)))
	}
}

const (
	cellWidth = 100 * time.Millisecond
	maxCells  = 1 << 14
	// maxSpan is far longer than any run: a damaged row may not make every cell
	// a day wide.
	maxSpan = 90 * 24 * time.Hour
)

// A timeline is how many requests were in flight, and how many tokens they held,
// over the time of the run, in cells that double when there would be too many.
type timeline struct {
	width time.Duration
	cells []cell
}

// A cell holds areas: request seconds and token seconds within it.
type cell struct{ flight, tokens float64 }

// add counts a request that is in flight from a to b and holds prompt tokens,
// and from first to last up to output more.
func (l *timeline) add(a, b, first, last time.Duration, prompt, output float64) {
	a, b = max(a, 0), min(b, maxSpan)
	if b <= a {
		return
	}
	for int64((b-1)/l.width) >= maxCells {
		l.double()
	}
	if n := int((b-1)/l.width) + 1; n > len(l.cells) {
		l.cells = append(l.cells, make([]cell, n-len(l.cells))...)
	}
	// held integrates the tokens up to t.
	held := func(t time.Duration) float64 {
		v := prompt * (t - a).Seconds()
		if output > 0 && t > first {
			grow := (last - first).Seconds()
			if in := (min(t, last) - first).Seconds(); grow > 0 && in > 0 {
				v += output * in * in / (2 * grow)
			}
			if from := max(first, last); t > from {
				v += output * (t - from).Seconds()
			}
		}
		return v
	}
	before := 0.0
	for i := int(a / l.width); i < len(l.cells); i++ {
		from, to := max(a, time.Duration(i)*l.width), min(b, time.Duration(i+1)*l.width)
		if from >= b {
			break
		}
		h := held(to)
		l.cells[i].flight += (to - from).Seconds()
		l.cells[i].tokens += h - before
		before = h
	}
}

func (l *timeline) double() {
	for i := range l.cells {
		c := l.cells[i]
		if i%2 == 0 {
			l.cells[i/2] = c
			continue
		}
		l.cells[i/2].flight += c.flight
		l.cells[i/2].tokens += c.tokens
	}
	l.cells = l.cells[:(len(l.cells)+1)/2]
	l.width *= 2
}

// at returns the mean over the cell that t lies in.
func (l *timeline) at(t time.Duration) (flight, tokens float64) {
	i := int(t / l.width)
	if t < 0 || i >= len(l.cells) {
		return 0, 0
	}
	s := l.width.Seconds()
	return l.cells[i].flight / s, l.cells[i].tokens / s
}

// mean is that of the requests in flight over [from, to].
func (l *timeline) mean(from, to time.Duration) float64 {
	if to <= from {
		return math.NaN()
	}
	area := 0.0
	for i := max(0, int(from/l.width)); i < len(l.cells); i++ {
		a, b := time.Duration(i)*l.width, time.Duration(i+1)*l.width
		if a >= to {
			break
		}
		area += l.cells[i].flight * float64(min(b, to)-max(a, from)) / float64(l.width)
	}
	return area / (to - from).Seconds()
}

// signed is a histogram of durations of either sign.
type signed struct {
	pos, neg *stats.Hist
	m        stats.Moments
}

func newSigned() *signed { return &signed{pos: stats.NewHist(), neg: stats.NewHist()} }

func (s *signed) add(d time.Duration) {
	s.m.Add(float64(d))
	if d < 0 {
		s.neg.Add(-d, 1)
		return
	}
	s.pos.Add(d, 1)
}

// quantile is to three digits.
func (s *signed) quantile(p float64) time.Duration {
	n, neg := float64(s.m.N()), float64(s.neg.N())
	if rank := p * n; rank < neg {
		return -time.Duration(s.neg.Quantile(1 - rank/neg))
	} else if s.pos.N() > 0 {
		return time.Duration(s.pos.Quantile((rank - neg) / float64(s.pos.N())))
	}
	return -time.Duration(s.neg.Quantile(0))
}
