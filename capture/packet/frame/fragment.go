package frame

import (
	"slices"

	"reprise/capture/packet/reassembly"
)

const (
	maxFragBytes   = 8 << 20 // in all packets that are incomplete
	maxFragPieces  = 128     // of one packet
	maxFragPackets = 4096
	maxIPPayload   = 65535
	fragLifetime   = int64(30e9) // ns of packet time
	fragOverhead   = 64
)

type fragKey struct {
	src, dst [16]byte
	id       uint32
	proto    uint8
	v6       bool
}

// fragments puts IP packets back together (RFC 791, RFC 8200). Overlapping
// pieces make a packet worthless (RFC 5722), in IPv4 as well: nothing that is
// honest sends them.
type fragments struct {
	open    map[fragKey]*datagram
	order   []fragKey // by time of the first piece
	bytes   int
	dropped int64 // pieces of packets that never became complete
	out     []byte
}

type datagram struct {
	began  int64
	pieces []fragPiece
	have   int
	total  int // 0 until the last piece is seen
}

type fragPiece struct {
	off int
	p   []byte
}

// fragment takes one piece; if it completes the packet, that is decoded.
func (d *Decoder) fragment(k fragKey, off int, more bool, b []byte, missing int, s *reassembly.Segment, depth int) Verdict {
	f := &d.frags
	if missing > 0 || len(b) == 0 || more && len(b)%8 != 0 || off+len(b) > maxIPPayload {
		f.dropped++
		d.FragmentsDropped = f.dropped
		return Fragment
	}
	whole := f.add(k, off, more, b, s.Time)
	d.FragmentsDropped = f.dropped
	if whole == nil {
		return Fragment
	}
	d.Reassembled++
	return d.transport(k.proto, whole, 0, s, depth)
}

func (f *fragments) add(k fragKey, off int, more bool, b []byte, now int64) (whole []byte) {
	f.expire(now)
	if f.open == nil {
		f.open = map[fragKey]*datagram{}
	}
	g := f.open[k]
	if g == nil {
		g = &datagram{began: now}
		f.open[k] = g
		f.order = append(f.order, k)
	}
	i, dup := slices.BinarySearchFunc(g.pieces, off, func(p fragPiece, off int) int { return p.off - off })
	if dup && len(g.pieces[i].p) == len(b) {
		f.dropped++ // a copy
		return nil
	}
	overlaps := dup ||
		i > 0 && g.pieces[i-1].off+len(g.pieces[i-1].p) > off ||
		i < len(g.pieces) && off+len(b) > g.pieces[i].off ||
		g.total > 0 && (!more || off+len(b) > g.total)
	g.pieces = slices.Insert(g.pieces, i, fragPiece{off, slices.Clone(b)})
	g.have += len(b)
	f.bytes += len(b) + fragOverhead
	if !more {
		g.total = off + len(b)
	}
	if overlaps || len(g.pieces) > maxFragPieces {
		f.drop(k)
		return nil
	}
	for (f.bytes > maxFragBytes || len(f.open) > maxFragPackets) && len(f.open) > 0 {
		f.drop(f.order[0])
	}
	if f.open[k] != g || g.total == 0 || g.have != g.total {
		return nil
	}
	f.out = f.out[:0]
	for _, p := range g.pieces {
		f.out = append(f.out, p.p...)
	}
	n := int64(len(g.pieces))
	f.drop(k)
	f.dropped -= n // they were of use after all
	return f.out
}

// drop forgets a packet.
func (f *fragments) drop(k fragKey) {
	g := f.open[k]
	delete(f.open, k)
	f.order = slices.DeleteFunc(f.order, func(o fragKey) bool { return o == k })
	for _, p := range g.pieces {
		f.bytes -= len(p.p) + fragOverhead
	}
	f.dropped += int64(len(g.pieces))
}

func (f *fragments) expire(now int64) {
	for len(f.order) > 0 && now-f.open[f.order[0]].began > fragLifetime {
		f.drop(f.order[0])
	}
}

func (f *fragments) dropAll() {
	for len(f.order) > 0 {
		f.drop(f.order[0])
	}
}
