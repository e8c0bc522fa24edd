package frame

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
)

// DefaultReorder is how far back in time, in nanoseconds, a packet may lie
// behind one read before it and still be put in its place.
const DefaultReorder = int64(100e6)

// Bounds on the packets that wait for earlier ones.
const (
	maxReorderBytes   = 64 << 20
	maxReorderPackets = 32768
)

// Merged yields the packets of several files in the order of their times. A
// file is opened when its turn comes, so that thousands of them in a rotation
// are no trouble.
//
// Files are mostly in order by themselves, and then nothing is copied. From the
// first packet on that goes back in time, packets are held for the reorder
// window. Those that come even later are passed on at once, and counted.
type Merged struct {
	// Late counts packets that came after a later one had been passed on.
	Late int64
	// Problems are the files that ended in damage. What was good of them was
	// read.
	Problems []error
	// Secrets counts the blocks of TLS keys in files that were read to their end.
	Secrets int

	waiting []pending // by first time, not opened yet
	open    sources
	cur     *input

	window  int64
	reorder bool
	queue   []queued
	head    int
	bytes   int
	last    int64 // time of the packet passed on last
	newest  int64
	free    [][]byte
	lent    []byte // memory of the packet passed on last
}

type pending struct {
	name  string
	first int64
}

// input is a file that is being read: its next packet has been read already.
type input struct {
	src Source
	p   Packet
	n   int // place on the command line: breaks ties
}

// OpenAll prepares to read the files of names. An error says that one of them
// cannot be read at all; a file without a packet is fine.
func OpenAll(names []string, window int64) (*Merged, error) {
	m := &Merged{window: window}
	for i, name := range names {
		src, err := Open(name)
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		in := &input{src: src, n: i}
		switch err := src.Next(&in.p); {
		case err == io.EOF:
			src.Close()
			continue
		case err != nil:
			src.Close()
			if errors.Is(err, io.ErrUnexpectedEOF) {
				m.Problems = append(m.Problems, err)
				continue
			}
			return nil, errors.Join(err, m.Close())
		}
		if name == "-" || len(names) == 1 {
			heap.Push(&m.open, in)
			continue
		}
		m.waiting = append(m.waiting, pending{name, in.p.Time})
		src.Close()
	}
	slices.SortStableFunc(m.waiting, func(a, b pending) int { return cmp.Compare(a.first, b.first) })
	return m, nil
}

// FromSource is OpenAll for one source.
func FromSource(src Source, window int64) *Merged {
	m := &Merged{window: window}
	in := &input{src: src}
	if m.advance(in) {
		m.open = sources{in}
	}
	return m
}

// Close closes what is open.
func (m *Merged) Close() error {
	var errs []error
	for _, in := range m.open {
		errs = append(errs, in.src.Close())
	}
	if m.cur != nil {
		errs = append(errs, m.cur.src.Close())
		m.cur = nil
	}
	m.open = nil
	return errors.Join(errs...)
}

// Next yields the next packet.
func (m *Merged) Next(p *Packet) error {
	if m.lent != nil {
		m.free = append(m.free, m.lent)
		m.lent = nil
	}
	for {
		if n := len(m.queue) - m.head; n > 0 &&
			(m.newest-m.queue[m.head].Time > m.window || m.bytes > maxReorderBytes || n > maxReorderPackets) {
			m.pop(p)
			return nil
		}
		in := m.pull()
		if in == nil {
			if m.head < len(m.queue) {
				m.pop(p)
				return nil
			}
			return io.EOF
		}
		if in.p.Time < m.last {
			m.reorder = m.window > 0
			m.Late++
			*p = in.p
			return nil
		}
		m.newest = max(m.newest, in.p.Time)
		if !m.reorder {
			m.last = in.p.Time
			*p = in.p
			return nil
		}
		m.push(&in.p)
	}
}

// pull reads the packet with the smallest time of all files.
func (m *Merged) pull() *input {
	if in := m.cur; in != nil {
		m.cur = nil
		if m.advance(in) {
			if (len(m.open) == 0 || in.p.Time < m.open[0].p.Time) && (len(m.waiting) == 0 || in.p.Time < m.waiting[0].first) {
				m.cur = in
				return in
			}
			heap.Push(&m.open, in)
		}
	}
	for len(m.waiting) > 0 && (len(m.open) == 0 || m.waiting[0].first <= m.open[0].p.Time) {
		w := m.waiting[0]
		m.waiting = m.waiting[1:]
		src, err := Open(w.name)
		if err != nil {
			m.Problems = append(m.Problems, err)
			continue
		}
		in := &input{src: src, n: len(m.waiting)}
		if m.advance(in) {
			heap.Push(&m.open, in)
		}
	}
	if len(m.open) == 0 {
		return nil
	}
	m.cur = heap.Pop(&m.open).(*input)
	return m.cur
}

// advance reads the next packet of a file, and closes it at its end.
func (m *Merged) advance(in *input) bool {
	err := in.src.Next(&in.p)
	if err == nil {
		return true
	}
	if err != io.EOF {
		m.Problems = append(m.Problems, fmt.Errorf("%w: read up to there", err))
	}
	m.Secrets += secrets(in.src)
	in.src.Close()
	return false
}

// queued is a packet that waits, with memory of its own.
type queued struct{ Packet }

func (m *Merged) push(p *Packet) {
	var buf []byte
	if n := len(m.free); n > 0 {
		buf, m.free = m.free[n-1], m.free[:n-1]
	}
	q := queued{*p}
	q.Data = append(buf[:0], p.Data...)
	m.bytes += cap(q.Data)
	if m.head > 4096 && m.head*2 > len(m.queue) {
		n := copy(m.queue, m.queue[m.head:])
		clear(m.queue[n:])
		m.queue, m.head = m.queue[:n], 0
	}
	m.queue = append(m.queue, q)
	if i := len(m.queue) - 1; i > m.head && m.queue[i-1].Time > q.Time {
		// After those of the same time: they came first.
		at := m.head + sort.Search(i-m.head, func(j int) bool { return m.queue[m.head+j].Time > q.Time })
		copy(m.queue[at+1:], m.queue[at:i])
		m.queue[at] = q
	}
}

// pop passes on the first packet that waits.
func (m *Merged) pop(p *Packet) {
	q := &m.queue[m.head]
	*p = q.Packet
	m.head++
	m.bytes -= cap(p.Data)
	m.last = p.Time
	m.lent = p.Data
	q.Data = nil
}

// sources is a heap by time of the next packet.
type sources []*input

func (s sources) Len() int { return len(s) }
func (s sources) Less(i, j int) bool {
	if s[i].p.Time != s[j].p.Time {
		return s[i].p.Time < s[j].p.Time
	}
	return s[i].n < s[j].n
}
func (s sources) Swap(i, j int) { s[i], s[j] = s[j], s[i] }
func (s *sources) Push(x any)   { *s = append(*s, x.(*input)) }
func (s *sources) Pop() any {
	old := *s
	x := old[len(old)-1]
	*s = old[:len(old)-1]
	return x
}
