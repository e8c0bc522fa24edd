package reassembly

import "math"

// segment takes one segment of direction d.
func (c *Conn) segment(d Dir, s *Segment) {
	h, peer := &c.halves[d], &c.halves[1-d]
	seq := s.Seq
	if s.Flags&SYN != 0 {
		seq++ // the SYN takes the number before the first byte
		if !h.started {
			h.base, h.known, h.started = seq, true, true
			h.next, h.acked = 0, 0
		}
		if !c.ClientKnown {
			c.ClientKnown, c.Client = true, d
			if s.Flags&ACK != 0 {
				c.Client = 1 - d
			}
		}
	} else if !h.known {
		h.base, h.known = seq, true
	}
	off := h.offset(seq)
	end := off + int64(len(s.Payload)) + int64(s.Missing)

	ack := int64(-1)
	if s.Flags&ACK != 0 {
		if !peer.known {
			peer.base, peer.known = s.Ack, true
		}
		ack = peer.offset(s.Ack)
		if peer.fin >= 0 {
			ack = min(ack, peer.fin) // the number after the FIN is no byte
		}
		if ack > peer.acked && ack-peer.next < maxJump {
			peer.acked = ack
		}
		// Before the payload: it may answer what lies behind the hole.
		if peer.started && (peer.acked > peer.next || peer.stuck != 0) {
			c.checkHole(1-d, s.Time, end > off)
		}
	}

	if end > off {
		switch {
		case h.isCopy(s, s.Time):
			c.a.Duplicates++
			return
		case !h.started:
			// Offset 0 is what the peer said that it waits for, if it said so
			// first: what lies between was sent since, and was not captured. A
			// keep-alive is one byte off.
			h.started = true
			if off <= 1 || off > maxJump {
				h.next = off
			}
			h.acked = max(h.acked, h.next)
		}
		switch {
		case end <= h.next:
			// A retransmission, a keep-alive, or the probe of a closed window.
			c.a.Retransmissions++
		case off <= h.next:
			p, missing := s.Payload, int64(s.Missing)
			if cut := h.next - off; cut < int64(len(p)) {
				p = p[cut:]
			} else {
				missing -= cut - int64(len(p))
				p = nil
			}
			c.deliver(d, s.Time, ack, p, missing)
			if len(h.held) > 0 {
				c.drain(d)
			}
		default:
			c.hold(d, off, ack, s)
		}
	}

	if s.Flags&FIN != 0 && h.fin < 0 && h.known {
		h.fin, h.finTime = end, s.Time
		h.acked = min(h.acked, end)
		if !h.started {
			h.started, h.next = true, end
		}
		if !c.finSeen {
			c.finSeen, c.finBy = true, d
		}
	}
	if len(h.held) > 0 || h.stuck != 0 {
		c.checkHole(d, s.Time, false)
	}
	switch {
	case c.over: // a handler cannot end it, but making room can
	case s.Flags&RST != 0:
		c.a.ResetByPeer++
		c.close(s.Time, Reset, d)
	default:
		c.checkFin(s.Time)
	}
}

// deliver hands over bytes that are next in stream d, then the gap of those
// that the snap length cut off.
func (c *Conn) deliver(d Dir, t, ack int64, p []byte, missing int64) {
	h := &c.halves[d]
	if h.fin >= 0 && h.next+int64(len(p))+missing > h.fin { // nothing comes after the end
		room := max(0, h.fin-h.next)
		p = p[:min(room, int64(len(p)))]
		missing = min(missing, room-int64(len(p)))
	}
	h.clock = max(h.clock, t)
	if !c.begun {
		c.begun = true
		c.h = c.a.begin(c)
	}
	if len(p) > 0 {
		at := Mark{h.clock, h.next, ack}
		h.next += int64(len(p))
		c.a.DeliveredBytes += int64(len(p))
		if c.h != nil {
			c.h.Data(d, at, p)
		}
	}
	if missing > 0 {
		c.a.TruncatedBytes += missing
		c.gap(d, missing)
	}
}

// gap steps over n bytes that were not captured.
func (c *Conn) gap(d Dir, n int64) {
	h := &c.halves[d]
	at := Mark{h.clock, h.next, -1}
	h.next += n
	c.a.Gaps++
	c.a.GapBytes += n
	if c.h != nil {
		c.h.Gap(d, at, n)
	}
}

// hold keeps what is new of a segment that lies beyond next.
func (c *Conn) hold(d Dir, off, ack int64, s *Segment) {
	h := &c.halves[d]
	if off-h.next > maxJump {
		return // replacedBy has seen it: only a half that just started
	}
	p, missing := s.Payload, int64(s.Missing)
	c.a.OutOfOrder++
	// Nearly always it goes last.
	i := len(h.held)
	for i > 0 && h.held[i-1].off > off {
		i--
	}
	// First copy wins: cut what earlier ones hold already.
	fresh := false
	for len(p) > 0 || missing > 0 {
		if i > 0 {
			if over := h.held[i-1].end() - off; over > 0 {
				off, p, missing = skip(off, p, missing, over)
				continue
			}
		}
		n := int64(math.MaxInt64)
		if i < len(h.held) {
			n = h.held[i].off - off
		}
		piece, pieceMissing := p, missing
		if n < int64(len(p)) {
			piece, pieceMissing = p[:n], 0
		} else if n < int64(len(p))+missing {
			pieceMissing = n - int64(len(p))
		}
		if size := int64(len(piece)) + pieceMissing; size > 0 {
			fresh = true
			c.insert(d, i, held{off, s.Time, ack, pieceMissing, append([]byte(nil), piece...)})
			off, p, missing = skip(off, p, missing, size)
		}
		i++
	}
	if !fresh {
		c.a.Retransmissions++
	}
	if h.heldBytes > c.a.perConn || len(h.held) > maxHeld {
		c.release(d, h.held[0].off, true)
	}
}

// skip moves the start of a segment forward by n.
func skip(off int64, p []byte, missing, n int64) (int64, []byte, int64) {
	cut := min(n, int64(len(p)))
	p = p[cut:]
	missing = max(0, missing-(n-cut))
	return off + n, p, missing
}

func (c *Conn) insert(d Dir, i int, s held) {
	h := &c.halves[d]
	h.held = append(h.held, held{})
	copy(h.held[i+1:], h.held[i:])
	h.held[i] = s
	h.heldBytes += len(s.p) + heldOverhead
	c.a.Budget.Add(len(s.p) + heldOverhead)
}

// drain delivers what was held and is next now.
func (c *Conn) drain(d Dir) {
	h := &c.halves[d]
	i := 0
	for ; i < len(h.held) && h.held[i].off <= h.next; i++ {
		s := h.held[i]
		h.held[i].p = nil
		h.heldBytes -= len(s.p) + heldOverhead
		c.a.Budget.Add(-len(s.p) - heldOverhead)
		if s.end() <= h.next {
			continue
		}
		_, p, missing := skip(s.off, s.p, s.missing, h.next-s.off)
		c.deliver(d, s.time, s.ack, p, missing)
	}
	if i == len(h.held) {
		h.held = nil // an idle connection keeps nothing
	} else if i > 0 {
		h.held = append(h.held[:0], h.held[i:]...)
	}
	if h.next >= h.acked && len(h.held) == 0 {
		h.stuck = 0
	}
}

// checkHole declares the hole at next when it is due: the peer acknowledged
// it some time ago, so no retransmission will come. Data of the peer, if that is
// what says so, makes it due sooner.
func (c *Conn) checkHole(d Dir, now int64, data bool) {
	h, peer := &c.halves[d], &c.halves[1-d]
	due := h.acked > h.next
	deaf := !due && len(h.held) > 0 && !peer.known
	if h.acked == h.next+1 && len(h.held) == 0 && h.fin < 0 {
		due = false // most likely the number of a FIN that was not captured
	}
	if !due && !deaf {
		h.stuck = 0
		return
	}
	if h.stuck == 0 {
		h.stuck, h.stuckFor = max(now, 1), 0
		return
	}
	h.stuckFor++
	age := now - h.stuck
	switch {
	case deaf && age >= graceDeaf:
		c.release(d, h.held[0].off, false)
	case due && (age >= graceLong || age >= graceTime && (data || h.stuckFor >= gracePackets)):
		c.release(d, h.acked, false)
	}
}

// release declares gaps and delivers what is held, up to the offset to.
func (c *Conn) release(d Dir, to int64, budget bool) {
	h := &c.halves[d]
	if h.fin >= 0 {
		to = min(to, h.fin)
	}
	for h.next < to {
		edge := to
		if len(h.held) > 0 {
			edge = min(edge, h.held[0].off)
		} else if edge == math.MaxInt64 {
			break
		}
		if edge > h.next {
			if budget {
				c.a.BudgetGaps++
			}
			if len(h.held) > 0 && h.held[0].off == edge {
				h.clock = max(h.clock, h.held[0].time)
			}
			if !c.begun {
				c.begun = true
				c.h = c.a.begin(c)
			}
			c.gap(d, edge-h.next)
		}
		c.drain(d)
	}
	if to < math.MaxInt64 {
		c.drain(d)
	}
	h.stuck = 0
}

// checkFin ends directions, and the connection when both have ended.
func (c *Conn) checkFin(t int64) {
	for d := range Dir(2) {
		h := &c.halves[d]
		if h.fin >= 0 && !h.finned && h.next >= h.fin {
			h.finned = true
			if c.h != nil {
				c.h.Fin(d, max(h.clock, h.finTime))
			}
		}
	}
	if c.halves[0].finned && c.halves[1].finned {
		c.close(t, Finished, c.finBy)
	}
}

// close delivers what can still be delivered and ends the connection.
func (c *Conn) close(t int64, why Closing, by Dir) {
	for d := range Dir(2) {
		h := &c.halves[d]
		if !h.started {
			continue
		}
		to := h.acked
		if len(h.held) > 0 {
			to = max(to, h.held[len(h.held)-1].end())
		}
		if h.fin >= 0 {
			to = h.fin
		} else if to == h.next+1 && len(h.held) == 0 {
			to = h.next // see checkHole
		}
		if to > h.next {
			c.release(d, to, false)
		}
		for i := range h.held { // what lies beyond the end
			c.a.Budget.Add(-len(h.held[i].p) - heldOverhead)
		}
		h.held, h.heldBytes = nil, 0
		if h.fin >= 0 && !h.finned {
			h.finned = true
			if c.h != nil {
				c.h.Fin(d, max(h.clock, h.finTime))
			}
		}
	}
	if c.h != nil {
		c.h.Close(t, why, by)
		c.h = nil
	}
	c.over = true
	c.a.open.remove(c)
	c.active = c.a.now
	c.a.closed.pushEnd(c)
}

// isCopy reports whether s is a packet that was just captured already, as
// happens on a loopback device and when several interfaces are captured. A
// retransmission has a new identification, or comes later.
func (h *half) isCopy(s *Segment, t int64) bool {
	sum := uint64(s.Seq)<<32 | uint64(s.Ack)
	sum ^= uint64(s.ID)<<17 ^ uint64(len(s.Payload))<<40 ^ uint64(s.Flags)<<8
	for i := range h.copies {
		if m := &h.copies[i]; m.sum == sum && m.time != 0 && t-m.time < copyWithin && m.time-t < copyWithin {
			return true
		}
	}
	h.copies[h.copyAt&3] = copyMark{sum, t}
	h.copyAt++
	return false
}
