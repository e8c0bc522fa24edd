package metrics

import (
	"math"
	"time"

	"reprise/internal/stats"
	"reprise/traceformat"
)

// maxRecords is the number of rows that a Collector keeps one by one, 32 MiB of
// them. A longer run is folded into histograms, so that its memory is flat.
const maxRecords = 1 << 19

// What a Dist is made of: one figure of each record, none where it has not got
// it.
const (
	ttftSchedule = iota
	ttftSend
	e2eSchedule
	e2eSend
	tpot
	failedAfter
	sendError
	pacerLag
	queueLag
	connectLag
	writeLag
	figures
)

// figure returns one figure of a measured record.
func (r *record) figure(which int) time.Duration {
	switch which {
	case ttftSchedule:
		return r.fromSchedule(r.ttft)
	case ttftSend:
		return r.fromSend(r.ttft)
	case e2eSchedule:
		return r.fromSchedule(r.e2e)
	case e2eSend:
		return r.fromSend(r.e2e)
	case tpot:
		if r.class != OK {
			return none
		}
		return r.tpot()
	case failedAfter:
		if r.class != Failed || r.end == none {
			return none
		}
		return r.end - r.zero
	}
	dials := r.flags&dialed != 0
	switch {
	case r.flags&replayed == 0 || r.lag == none:
		return none
	case which == sendError:
		return r.sendError()
	case which == pacerLag:
		return r.pacer
	case which == queueLag && !dials, which == connectLag && dials:
		return r.conn
	case which == writeLag:
		return r.write()
	}
	return none
}

func (r *record) fromSchedule(d time.Duration) time.Duration {
	if r.class != OK || d == none {
		return none
	}
	return d + r.lag
}

func (r *record) fromSend(d time.Duration) time.Duration {
	if r.class != OK || r.flags&replayed == 0 {
		return none
	}
	return d
}

// A folded holds what a Summary needs of rows that were not kept, in memory
// that does not grow with them, whatever their order.
type folded struct {
	dist [figures]*stats.Hist
	// late sums the lags of sends that were later than the strictest limit there
	// can be: the one in force is known at the end.
	late   Lag
	flight flight
	bins   bins
}

func newFolded(c *Config) *folded {
	f := &folded{bins: bins{from: c.From}}
	for i := range f.dist {
		f.dist[i] = stats.NewHist()
	}
	return f
}

func (f *folded) add(r *record, c *Config) {
	if r.lag != none && r.end != none {
		begin := r.zero + r.lag
		f.flight.add(begin, max(begin, r.end))
	}
	if r.flags&measured == 0 {
		return
	}
	for i := range f.dist {
		if d := r.figure(i); d != none {
			f.dist[i].Add(d, 1)
		}
	}
	if d := r.figure(sendError); d != none && d > min(c.Limits.SendErrorFloor, c.Limits.SendErrorP99) {
		f.late.delayed(r)
	}
	f.bins.add(r)
}

// delayed adds the lag of one send, by cause.
func (l *Lag) delayed(r *record) {
	l.Total += r.sendError()
	l.Pacer += r.pacer
	if r.flags&dialed != 0 {
		l.Connect += r.conn
	} else {
		l.Queue += r.conn
	}
	l.Write += r.write()
}

// flight counts requests in flight over time, in slots that grow wider as the
// run grows longer.
type flight struct {
	width time.Duration
	slots []slot
}

type slot struct {
	begins, ends         int64
	beginsAfter, endsAft time.Duration // sums of the time from the slot's start
}

// maxSlots bounds them: two hours make slots of 0.13 s, 2 MiB in all.
const maxSlots = 1 << 16

func (f *flight) add(begin, end time.Duration) {
	s, after := f.at(begin)
	s.begins++
	s.beginsAfter += after
	s, after = f.at(end)
	s.ends++
	s.endsAft += after
}

func (f *flight) at(t time.Duration) (*slot, time.Duration) {
	if f.width == 0 {
		f.width = time.Millisecond
	}
	t = max(t, 0)
	for int64(t/f.width) >= maxSlots {
		for i := range f.slots {
			s := f.slots[i]
			if i%2 == 1 { // joins the slot before it
				s.beginsAfter += time.Duration(s.begins) * f.width
				s.endsAft += time.Duration(s.ends) * f.width
				o := &f.slots[i/2]
				o.begins, o.ends = o.begins+s.begins, o.ends+s.ends
				o.beginsAfter, o.endsAft = o.beginsAfter+s.beginsAfter, o.endsAft+s.endsAft
			} else {
				f.slots[i/2] = s
			}
		}
		f.slots = f.slots[:(len(f.slots)+1)/2]
		f.width *= 2
	}
	i := int(t / f.width)
	for len(f.slots) <= i {
		f.slots = append(f.slots, slot{})
	}
	return &f.slots[i], t - time.Duration(i)*f.width
}

// peak is the largest number in flight at the end of a slot.
func (f *flight) peak() (peak int64) {
	now := int64(0)
	for _, s := range f.slots {
		now += s.begins - s.ends
		peak = max(peak, now)
	}
	return peak
}

// busy is the time that requests spent in flight between two moments, those of
// the slots that these fall into taken as spread evenly.
func (f *flight) busy(from, to time.Duration) time.Duration {
	return time.Duration(f.until(to) - f.until(from))
}

func (f *flight) until(t time.Duration) (sum float64) {
	for i, s := range f.slots {
		left := float64(t - time.Duration(i)*f.width) // of the time up to t, behind the slot's start
		switch {
		case left <= 0:
			return sum
		case left >= float64(f.width):
			sum += float64(s.begins-s.ends)*left - float64(s.beginsAfter) + float64(s.endsAft)
		default:
			sum += float64(s.begins-s.ends) * left * left / (2 * float64(f.width))
		}
	}
	return sum
}

// bins are a Timeline in the making: more and more parts of one width, until
// two at a time are joined.
type bins struct {
	width time.Duration
	from  time.Duration // start of the first
	bins  []bin
}

type bin struct {
	requests, ok int64
	max          time.Duration
	ttft         map[int16]int64 // by logBucket
}

func (b *bins) add(r *record) {
	if b.width == 0 {
		b.width = time.Second
	}
	for int64((r.zero-b.from)/b.width) >= 2*maxBins {
		b.join()
	}
	i := int((r.zero - b.from) / b.width)
	for len(b.bins) <= i {
		b.bins = append(b.bins, bin{max: none, ttft: map[int16]int64{}})
	}
	p := &b.bins[i]
	p.requests++
	if r.class != OK {
		return
	}
	p.ok++
	if d := r.figure(ttftSchedule); d != none {
		p.max = max(p.max, d)
		p.ttft[logBucket(d)]++
	}
}

// join makes one bin of each two.
func (b *bins) join() {
	for i := range b.bins {
		if i%2 == 0 {
			b.bins[i/2] = b.bins[i]
			continue
		}
		o, p := &b.bins[i/2], &b.bins[i]
		o.requests, o.ok, o.max = o.requests+p.requests, o.ok+p.ok, max(o.max, p.max)
		for k, n := range p.ttft {
			o.ttft[k] += n
		}
	}
	b.bins = b.bins[:(len(b.bins)+1)/2]
	b.width *= 2
}

func (b *bins) timeline() []Bin {
	if len(b.bins) > maxBins {
		b.join()
	}
	out := make([]Bin, len(b.bins))
	for i, p := range b.bins {
		out[i] = Bin{From: b.from + time.Duration(i)*b.width, Requests: p.requests, OK: p.ok}
		if p.max != none {
			out[i].TTFT, out[i].TTFTMax = p.median(), some(float64(p.max))
		}
	}
	return out
}

// A logBucket is 2 % wide: a median off by 1 % at most is enough for a
// sparkline.
func logBucket(d time.Duration) int16 {
	return int16(math.Floor(math.Log(max(float64(d), 1)) / logStep))
}

const logStep = 0.0198026 // ln 1.02

func (p *bin) median() traceformat.Opt[Nanos] {
	var n, below int64
	lowest, highest := int16(math.MaxInt16), int16(math.MinInt16)
	for k, c := range p.ttft {
		n += c
		lowest, highest = min(lowest, k), max(highest, k)
	}
	for k := lowest; k <= highest; k++ {
		if below += p.ttft[k]; 2*below >= n {
			return some(math.Exp((float64(k) + 0.5) * logStep))
		}
	}
	return traceformat.Opt[Nanos]{}
}
