// Package packet records LLM traffic from packets: capture files, mirrored
// traffic, or a network interface.
//
// Packets go through four small packages, each of which knows only its own
// trade: frame reads files and takes off what is wrapped around TCP, reassembly
// makes byte streams of segments, wirehttp makes exchanges of byte streams, and
// live reads an interface. An [Engine] connects them to a [capture.Recorder]. It
// works on one goroutine, in the order of packet times, and nothing in it asks
// what time it is now: a file gives the same trace each time.
//
// Every packet is accounted for, see [Stats.Check].
package packet

import (
	"fmt"
	"strings"
	"time"

	"reprise/capture"
	"reprise/capture/packet/frame"
	"reprise/capture/packet/reassembly"
	"reprise/capture/packet/wirehttp"
	"reprise/internal/units"
)

// Options of an [Engine].
type Options struct {
	// Ports are those that servers listen on. Packets of other ports are
	// ignored; without any, every connection is looked into.
	Ports []uint16
	// Memory bounds reassembly and parsing (256 MiB); the recorder has a bound of
	// its own for bodies.
	Memory int64
	// PerConn bounds the out-of-order bytes of one connection (1 MiB).
	PerConn int
	// Idle ends a connection without packets (1 h of packet time).
	Idle time.Duration
}

// DefaultMemory is the default of Options.Memory: with as much for the
// recorder it makes half a gibibyte.
const DefaultMemory = 256 << 20

// An Engine makes exchanges of packets. It is used by one goroutine.
type Engine struct {
	dec     frame.Decoder
	asm     *reassembly.Assembler
	http    *wirehttp.Env
	ports   *[1 << 16 / 64]uint64 // nil: any
	ignored int64
	seg     reassembly.Segment
	first   int64
	last    int64
	back    int64
}

// Into records the exchanges of an [Engine] with r.
func Into(r *capture.Recorder) wirehttp.Recorder { return recorder{r} }

type recorder struct{ *capture.Recorder }

func (r recorder) Begin(t int64, c capture.Conn) wirehttp.Exchange { return r.Recorder.Begin(t, c) }

// New returns an engine that records to r.
func New(r wirehttp.Recorder, o Options) *Engine {
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	e := &Engine{}
	e.asm = reassembly.New(
		reassembly.Options{PerConn: o.PerConn, Memory: o.Memory, Idle: int64(o.Idle)},
		func(c *reassembly.Conn) reassembly.Handler { return e.http.Begin(c) })
	e.http = wirehttp.NewEnv(r, &e.asm.Budget)
	if len(o.Ports) > 0 {
		e.ports = new([1 << 16 / 64]uint64)
		e.http.ServerPorts = map[uint16]bool{}
		for _, p := range o.Ports {
			e.ports[p/64] |= 1 << (p % 64)
			e.http.ServerPorts[p] = true
		}
	}
	return e
}

// Packet takes the next packet.
func (e *Engine) Packet(p *frame.Packet) {
	if e.first == 0 {
		e.first = p.Time
	}
	if p.Time < e.last {
		e.back++
	}
	e.last = max(e.last, p.Time)
	if e.dec.Decode(p, &e.seg) != frame.TCP {
		return
	}
	if s := &e.seg; e.ports != nil && !e.port(s.Src.Port) && !e.port(s.Dst.Port) {
		e.ignored++
		return
	}
	e.asm.Add(&e.seg)
}

func (e *Engine) port(p uint16) bool { return e.ports[p/64]>>(p%64)&1 != 0 }

// Close ends what is open. The recorder is not closed.
func (e *Engine) Close() {
	e.asm.Close()
	e.dec.Close()
}

// Stats say what became of every packet, segment and connection.
type Stats struct {
	// Seen = Parsed + Ignored + NotIP + NotTCP + Fragments + Truncated + Malformed.
	Seen      int64 `json:"seen"`
	Parsed    int64 `json:"parsed"`            // TCP segments that were looked into
	Ignored   int64 `json:"ignored"`           // TCP segments of other ports
	NotIP     int64 `json:"not_ip"`            // ARP, unknown link types, ...
	NotTCP    int64 `json:"not_tcp"`           // UDP, ICMP, ...
	Fragments int64 `json:"fragments"`         // pieces of IP packets, but for the one that completed it
	Truncated int64 `json:"truncated_headers"` // cut by the snap length within the headers
	Malformed int64 `json:"malformed"`         // headers that contradict themselves

	Tunnelled        int64 `json:"tunnelled"`         // of Parsed and Ignored, those in a tunnel
	CutPayloads      int64 `json:"cut_payloads"`      // of Parsed and Ignored, those with a payload cut by the snap length
	FragmentsDropped int64 `json:"fragments_dropped"` // of Fragments, those of packets that never became complete
	OutOfOrder       int64 `json:"times_going_back"`  // packets with a time before that of an earlier one

	Open        int                 `json:"open_connections"`
	Memory      int64               `json:"memory_bytes"` // of reassembly and parsing
	Reassembly  reassembly.Counters `json:"tcp"`
	HTTP        wirehttp.Counters   `json:"http"`
	First, Last int64               `json:"-"` // packet times, ns since the epoch
}

// Stats returns what became of everything so far.
func (e *Engine) Stats() Stats {
	d := &e.dec.Counters
	return Stats{
		Seen: d.Packets, Parsed: d.TCP - e.ignored, Ignored: e.ignored,
		NotIP: d.NotIP, NotTCP: d.NotTCP, Fragments: d.Fragments, Truncated: d.Truncated, Malformed: d.Malformed,
		Tunnelled: d.Tunnelled, CutPayloads: d.CutPayloads, FragmentsDropped: d.FragmentsDropped, OutOfOrder: e.back,
		Open: e.asm.Open(), Memory: e.asm.Budget.Used,
		Reassembly: e.asm.Counters, HTTP: e.http.Counters,
		First: e.first, Last: e.last,
	}
}

// Check returns an error if the accounts do not add up.
func (s Stats) Check() error {
	if sum := s.Parsed + s.Ignored + s.NotIP + s.NotTCP + s.Fragments + s.Truncated + s.Malformed; sum != s.Seen {
		return fmt.Errorf("%d packets seen and %d accounted for", s.Seen, sum)
	}
	if s.Parsed != s.Reassembly.Segments {
		return fmt.Errorf("%d segments parsed and %d taken", s.Parsed, s.Reassembly.Segments)
	}
	return nil
}

// String is the accounts of packets on one line.
func (s Stats) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "packets seen %s = parsed %s", units.Count(s.Seen), units.Count(s.Parsed))
	for _, c := range []struct {
		name string
		n    int64
	}{
		{"ignored", s.Ignored}, {"not ip", s.NotIP}, {"not tcp", s.NotTCP}, {"fragments", s.Fragments},
		{"truncated headers", s.Truncated}, {"malformed", s.Malformed},
	} {
		if c.n > 0 {
			fmt.Fprintf(&b, " + %s %s", c.name, units.Count(c.n))
		}
	}
	return b.String()
}

// Warnings are reasons to doubt the trace.
func (s Stats) Warnings() []string {
	var w []string
	add := func(n int64, format string, args ...any) {
		if n > 0 {
			w = append(w, fmt.Sprintf(format, args...))
		}
	}
	r, h := &s.Reassembly, &s.HTTP
	add(r.Gaps, "%s gaps with %s bytes that were not captured", units.Count(r.Gaps), units.Count(r.GapBytes))
	add(s.CutPayloads, "%s packets were cut by the snap length: capture with one of 262144", units.Count(s.CutPayloads))
	add(r.BudgetGaps+r.EvictedConns, "the memory budget was spent: %s gaps and %s connections given up for it", units.Count(r.BudgetGaps), units.Count(r.EvictedConns))
	add(s.FragmentsDropped, "%s IP fragments without the rest of their packet", units.Count(s.FragmentsDropped))
	add(h.TLS, "%s connections are encrypted: capture behind what terminates TLS", units.Count(h.TLS))
	if h.HTTP1+h.HTTP2 == 0 && s.Parsed > 0 && h.TLS == 0 {
		w = append(w, "no HTTP was found in what was captured")
	}
	return w
}
